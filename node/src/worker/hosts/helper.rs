//! Processes that are no hosts and run code of others all the same, such as pip building a package: they end with
//! whoever waits for them, and with the node, like hosts.

use std::io;
use std::process::ExitStatus;

use futures::future::BoxFuture;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::family::Family;
use super::mark::{self, Mark};
use super::processes;
use crate::worker::environment::{Guarded, Guardian};

#[derive(Debug)]
struct Helper {
    family: Family,
    mark: Mark,
    group: i32,
    /// Until its end was seen: as long as its number is its own.
    child: Option<Child>,
}

impl Guardian for Family {
    fn start(&self, mut command: Command) -> io::Result<Box<dyn Guarded>> {
        let mark = self.mark();
        command.env(mark::VARIABLE, mark.text()).process_group(0).kill_on_drop(true);
        processes::adopt_orphans(&mut command);
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let group = group.ok_or_else(|| io::Error::other("it ended before it began"))?;
        processes::mark(group, &mark);
        let entered = self.enter(group);
        let helper = Helper { family: self.clone(), mark, group, child: Some(child) };
        if entered { Ok(Box::new(helper)) } else { Err(io::Error::other("this node is stopping")) }
    }
}

impl Guarded for Helper {
    fn wait(&mut self) -> BoxFuture<'_, io::Result<ExitStatus>> {
        Box::pin(async {
            let child = self.child.as_mut().ok_or_else(|| io::Error::other("its end was seen before"))?;
            let status = child.wait().await?;
            self.child = None;
            Ok(status)
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let (family, mark, group, child) =
            (self.family.clone(), self.mark.clone(), self.group, self.child.take());
        let end = move || {
            match child {
                Some(child) => {
                    processes::end(group);
                    drop(child);
                }
                None => processes::end_group(group),
            }
            processes::end_marked(&mark);
            family.leave(group);
        };
        match Handle::try_current() {
            // Should the runtime end before that, the guard does it.
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}
