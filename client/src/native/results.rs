//! Results of calls on their way to the node: in groups, but none waits for long.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::connection::Connection;
use super::object;
use super::wire::{Answer, Raised, WireError};

/// How long a result waits for others at most: sending one costs about a tenth of that at both ends.
const GATHERED: Duration = Duration::from_millis(2);

/// How many bytes of results wait for others.
const MAX_GATHERED_BYTES: usize = 1 << 20;

/// How a call ended, in a message.
const RETURNED: u8 = 0;
const RAISED: u8 = 1;

/// The results of one message's calls.
pub(super) struct Results<'a> {
    connection: &'a Connection,
    group: Mutex<Group>,
    changed: Condvar,
}

/// Results that were not sent yet, as they will stand in the message.
#[derive(Default)]
struct Group {
    ids: Vec<u8>,
    status: Vec<u8>,
    elapsed: Vec<u8>,
    lengths: Vec<u8>,
    bodies: Vec<u8>,
    /// No more will come.
    ended: bool,
    /// The pipe broke under a group that another thread sent.
    broken: Option<WireError>,
}

/// What a raised call's body is.
#[derive(Serialize)]
struct RaisedBody<'a> {
    message: &'a str,
    traceback: &'a str,
    /// Nothing: a Rust error is known by its text.
    exception: Bytes,
}

impl<'a> Results<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, group: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a result, and sends the group if it is large.
    pub(super) fn add(
        &self,
        id: u64,
        outcome: Result<Vec<u8>, Raised>,
        elapsed: Duration,
    ) -> Result<(), WireError> {
        let (status, body) = match outcome {
            Ok(body) if u32::try_from(body.len()).is_ok() => (RETURNED, body),
            Ok(body) => {
                let raised = Raised::new(&format!("a result of {} bytes is too large", body.len()));
                (RAISED, raised_body(&raised)?)
            }
            Err(raised) => (RAISED, raised_body(&raised)?),
        };
        let elapsed = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
        let mut group = self.group();
        let first = group.status.is_empty();
        group.ids.extend_from_slice(&id.to_le_bytes());
        group.status.push(status);
        group.elapsed.extend_from_slice(&elapsed.to_le_bytes());
        group.lengths.extend_from_slice(&(body.len() as u32).to_le_bytes());
        group.bodies.extend_from_slice(&body);
        if group.bodies.len() >= MAX_GATHERED_BYTES {
            self.send(&mut group)?;
        } else if first {
            self.changed.notify_all();
        }
        group.broken.take().map_or(Ok(()), Err)
    }

    /// Runs calls that add their results, and sends these: what is there after [`GATHERED`], even if the next
    /// call takes long, and the rest at the end.
    pub(super) fn collect(
        &self,
        several: bool,
        run: impl FnOnce(&Self) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        if several {
            std::thread::scope(|scope| {
                scope.spawn(|| self.send_regularly());
                // Whatever happens in between, the other thread ends.
                let _end = End(self);
                run(self)
            })?;
        } else {
            run(self)?;
        }
        let mut group = self.group();
        self.send(&mut group)
    }

    fn send_regularly(&self) {
        let mut group = self.group();
        loop {
            group = self
                .changed
                .wait_while(group, |group| group.status.is_empty() && !group.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if group.ended {
                return;
            }
            let waited = self.changed.wait_timeout_while(group, GATHERED, |group| !group.ended);
            group = waited.unwrap_or_else(PoisonError::into_inner).0;
            if group.ended {
                return;
            }
            if let Err(error) = self.send(&mut group) {
                group.broken = Some(error);
                return;
            }
        }
    }

    fn send(&self, group: &mut Group) -> Result<(), WireError> {
        if let Some(error) = group.broken.take() {
            return Err(error);
        }
        if group.status.is_empty() {
            return Ok(());
        }
        let sections: [&[u8]; 5] = [&group.ids, &group.status, &group.elapsed, &group.lengths, &group.bodies];
        self.connection.say(&Answer::Results {}, &sections)?;
        for section in [&mut group.ids, &mut group.elapsed, &mut group.lengths, &mut group.bodies] {
            section.clear();
        }
        group.status.clear();
        Ok(())
    }

    fn group(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the thread that sends.
struct End<'a, 'b>(&'a Results<'b>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.group().ended = true;
        self.0.changed.notify_all();
    }
}

fn raised_body(raised: &Raised) -> Result<Vec<u8>, WireError> {
    let body = RaisedBody { message: &raised.message, traceback: &raised.traceback, exception: Bytes::new() };
    object::encode(&body).map_err(WireError::Unwritable)
}
