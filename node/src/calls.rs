//! Calls from drivers and from other nodes, each served in a task of its own.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use floe_consensus::{Command, Entry};
use floe_network::Caller;
use floe_protocol::function::Blob;
use floe_protocol::message::Inspected;
use floe_protocol::{
    Failure, Freed, InvitationId, JobPhase, KeyName, OutputMeta, Request, Response, Secret, StageGraph,
    TaskId, WhyFreed, frame,
};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::{Body, BodyError, send_body};
use floe_transport::substreams::KEPT_OPEN;
use floe_transport::{Gate, node_id};
use futures::StreamExt;
use libp2p::{PeerId, Stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::blobs::Blobs;
use crate::clock::wall_time;
use crate::config;
use crate::fault::{self, Faults};
use crate::in_use::InUse;
use crate::intake::Intake;
use crate::job_status;
use crate::keys;
use crate::large_messages::LargeMessages;
use crate::logs;
use crate::mailbox::{Ask, Mailbox, Proposed};
use crate::places::Places;
use crate::progress::Progress;
use crate::recovery;
use crate::results::Results;
use crate::session::Sessions;
use crate::store::Store;
use crate::stream::{Streams, chunks_of};
use crate::submit::{Submitter, blocking};
use crate::worker::task_logs::TaskLogs;

/// Serves calls.
#[derive(Clone, Debug)]
pub struct Calls {
    pub(crate) mailbox: Mailbox,
    pub(crate) submitter: Submitter,
    pub(crate) streams: Arc<Streams>,
    pub(crate) results: Results,
    pub(crate) progress: Progress,
    pub(crate) reading: InUse,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) sessions: Sessions,
    pub(crate) logs: TaskLogs,
    pub(crate) places: Places,
    pub(crate) gate: Gate,
    /// What specifications that are being read and planned may take together.
    pub(crate) intake: Intake,
    pub(crate) large: LargeMessages,
    pub(crate) faults: Faults,
}

impl Calls {
    /// Serves a call in the background, and those that come after it on its stream.
    pub fn serve(&self, from: Caller, request: Request, stream: Stream) {
        let calls = self.clone();
        tokio::spawn(async move {
            let mut next = Some((request, stream));
            while let Some((request, stream)) = next.take() {
                match calls.answer(&from, request, stream).await {
                    Ok(Some(stream)) => next = next_call(stream).await,
                    Ok(None) => {}
                    Err(failure) => tracing::debug!(%failure, "a call ended early"),
                }
            }
        });
    }

    /// Answers a call. Where it is a short one, another may follow on the stream.
    async fn answer(
        &self,
        from: &Caller,
        request: Request,
        mut stream: Stream,
    ) -> Result<Option<Stream>, Failure> {
        let _place = match self.places.take(from, &request) {
            Ok(place) => place,
            Err(failure) => return refuse(stream, &request, failure).await.map(|()| None),
        };
        if !from.is_node() && request.is_for_nodes() {
            let message = "only a node of the mesh may ask this".to_owned();
            reply(&mut stream, Response::Failed(Failure::Refused { message })).await?;
            return Ok(None);
        }
        if let Caller::Guest { peer, invitation } = *from {
            let response = match request {
                Request::Enter => self.enter(peer, invitation).await,
                _ => {
                    let message = "an invitation admits nobody to more than the mesh key".to_owned();
                    Err(Failure::Refused { message })
                }
            };
            reply(&mut stream, response.unwrap_or_else(Response::Failed)).await?;
            return Ok(None);
        }
        match request {
            Request::Submit { id, again } => {
                let owner = owner(from);
                if let Err(failure) = self.submitter.admit(id).await {
                    return refuse(stream, &request, failure).await.map(|()| None);
                }
                let _use = self.submitter.begin(id);
                let outcome = match self.read_spec(&mut stream).await {
                    Ok((spec, _room)) => self.submitter.submit(id, owner, spec, again, &mut stream).await,
                    Err(failure) => Err(failure),
                };
                let accepted = outcome.is_ok();
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Accepted { id }))
                    .await?;
                Ok(accepted.then_some(stream))
            }
            Request::Watch { id } => {
                let said = job_status::watch(&self.mailbox, &self.progress, &mut stream, id).await?;
                Ok(said.then_some(stream))
            }
            Request::Mesh => {
                let asker = match from {
                    Caller::Node(node) => *node,
                    Caller::Driver(_) | Caller::Guest { .. } => self.mailbox.network().node(),
                };
                let view = self.mailbox.ask(|reply| Ask::Mesh(asker, reply)).await;
                reply(&mut stream, view.map_or_else(Response::Failed, Response::Mesh)).await?;
                Ok(Some(stream))
            }
            long if long.is_long() => self.answer_at_length(from, long, stream).await.map(|()| None),
            short => {
                let response = self.short(short).await.unwrap_or_else(Response::Failed);
                reply(&mut stream, response).await?;
                Ok(Some(stream))
            }
        }
    }

    /// Answers a call that has a stream to itself.
    async fn answer_at_length(
        &self,
        from: &Caller,
        request: Request,
        mut stream: Stream,
    ) -> Result<(), Failure> {
        match request {
            Request::Explain { again } => {
                let outcome = match self.read_spec(&mut stream).await {
                    Ok((spec, _room)) => self.submitter.explain(spec, again).await,
                    Err(failure) => Err(failure),
                };
                reply_with_graph(&mut stream, outcome).await
            }
            Request::Plan { id, apart, keep } => {
                let outcome = match self.read_spec(&mut stream).await {
                    Ok((spec, _room)) => self.submitter.plan_here(id, spec, apart, keep).await,
                    Err(failure) => Err(failure),
                };
                reply_with_graph(&mut stream, outcome).await
            }
            Request::Result { id, from_partition } => {
                let _use = self.reading.begin(id);
                self.results.result(stream, id, from_partition).await
            }
            Request::Partitions { id, from_partition } => {
                let _use = self.reading.begin(id);
                self.results.partitions(stream, id, from_partition).await
            }
            Request::Partition { id, partition } => {
                let _use = self.reading.begin(id);
                self.results.relay(stream, id, partition).await
            }
            Request::Fetch { partition, bucket } => {
                let _use = (!from.is_node()).then(|| self.reading.begin(partition.job));
                self.streams.serve_fetch(stream, partition, bucket).await
            }
            Request::Session { id, label } => self.sessions.attend(stream, id, owner(from), label).await,
            Request::Seat { session } => self.sessions.seat(stream, session).await,
            Request::PutBlob { blob } => {
                let outcome = self.keep_blob(from, &mut stream, blob).await;
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            Request::PutPlan { plan } => {
                let outcome = self.blobs.receive_plan(plan, &mut stream).await;
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            Request::GetBlob { id } => self.blobs.serve(stream, id, !from.is_node()).await,
            Request::Logs { job, task, follow } => {
                let wanted = logs::Wanted { job, task, follow };
                logs::serve(&self.mailbox, &self.logs, stream, wanted, !from.is_node()).await
            }
            Request::Put { partition, meta } => {
                let outcome = self.keep(&mut stream, partition, meta).await;
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            Request::Raft { era, incarnation, bytes } => {
                let outcome = match *from {
                    Caller::Node(node) => {
                        self.large.receive(&self.mailbox, node, &mut stream, (era, incarnation), bytes).await
                    }
                    Caller::Driver(_) | Caller::Guest { .. } => {
                        Err(Failure::internal("only nodes send messages of nodes"))
                    }
                };
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            other => Err(Failure::internal(format!("{other:?} was not served"))),
        }
    }

    /// Calls of one frame each way.
    async fn short(&self, request: Request) -> Result<Response, Failure> {
        match request {
            Request::HasBlob { id } => Ok(Response::Has(self.blobs.has(id).await)),
            Request::Status => Ok(Response::Status(self.mailbox.ask(Ask::Status).await?)),
            Request::Job { id } => Ok(Response::Job(job_status::current(&self.mailbox, id).await?)),
            Request::Progress { id } => {
                Ok(Response::Job(self.mailbox.ask(|reply| Ask::Progress(id, reply)).await??))
            }
            Request::Made { id, partition } => {
                Ok(Response::Made(self.mailbox.ask(|reply| Ask::Made(id, partition, reply)).await??))
            }
            Request::Jobs => Ok(Response::Jobs(self.mailbox.ask(Ask::Jobs).await??)),
            Request::Cancel { id } => {
                let phase = JobPhase::Cancelled;
                self.mailbox.propose(Command::EndJob { job: id, phase, ended_at: wall_time() }).await?;
                Ok(Response::Done)
            }
            Request::Release { id } => {
                let freed = Freed { why: WhyFreed::Released, at: wall_time() };
                self.mailbox.propose(Command::Release { jobs: vec![id], freed }).await?;
                Ok(Response::Done)
            }
            Request::Propose { request, command } => {
                let command = frame::decode(&command).map_err(|error| Failure::Refused {
                    message: format!("the command cannot be read: {error}"),
                })?;
                let proposed =
                    self.mailbox.ask(|reply| Ask::Propose(Entry { request, command }, reply)).await?;
                Ok(answer_of(proposed))
            }
            Request::Join { member } => {
                Ok(answer_of(self.mailbox.ask(|reply| Ask::Join(member, reply)).await?))
            }
            Request::Recover { agreed: false } => {
                recovery::needed(&self.mailbox).await?;
                Ok(Response::Done)
            }
            Request::Recover { agreed: true } => {
                Ok(Response::Recovered { node: recovery::recover(&self.mailbox).await? })
            }
            Request::Survivor => Ok(Response::Survivor(self.mailbox.ask(Ask::Survivor).await?)),
            Request::CarryOn { era } => {
                self.mailbox.ask(|reply| Ask::CarryOn(era, reply)).await??;
                Ok(Response::Done)
            }
            Request::Invite { id, verifier, uses, lasts_ms } => {
                self.mailbox.propose(Command::Invite { id, verifier, uses, lasts_ms }).await?;
                Ok(Response::Done)
            }
            Request::Enter => {
                let message = "only one that comes by an invitation may ask this".to_owned();
                Err(Failure::Refused { message })
            }
            Request::Forget { node } => {
                self.mailbox.propose(Command::Forget { node }).await?;
                Ok(Response::Done)
            }
            Request::RotateKey { from } => Ok(Response::Rotated { to: self.rotate_key(from).await? }),
            Request::Fault(fault) => {
                fault::inflict(self.faults, fault)?;
                Ok(Response::Done)
            }
            Request::Inspect { paths } => {
                let found: Vec<Inspected> = blocking(move || floe_query::inspect(&paths)).await?;
                Ok(Response::Inspected(found))
            }
            other => Err(Failure::internal(format!("{other:?} was not served"))),
        }
    }

    /// Gives the mesh key to one that was invited, once the mesh has agreed that the use is its.
    async fn enter(&self, peer: PeerId, invitation: InvitationId) -> Result<Response, Failure> {
        self.mailbox.propose(Command::Enter { invitation, node: node_id(&peer) }).await?;
        tracing::info!(node = %node_id(&peer), %invitation, "a node was let in by an invitation");
        Ok(Response::Key(Secret(self.gate.key().to_bytes())))
    }

    /// Changes the mesh key, unless somebody has just done that from the same one.
    async fn rotate_key(&self, from: KeyName) -> Result<KeyName, Failure> {
        let key = self.gate.key();
        if self.gate.takes_of_drivers(from) {
            return Ok(key.name());
        }
        if key.name() != from {
            let message = format!(
                "the mesh has key {}, not {}: read the key file again",
                key.fingerprint(),
                from.fingerprint()
            );
            return Err(Failure::Refused { message });
        }
        let rotation = keys::rotation(&key)?;
        let to = rotation.to;
        self.mailbox.propose(Command::RotateKey(rotation)).await?;
        Ok(to)
    }

    /// Reads a specification, which may carry frames, up to [`config::MAX_SPEC_BYTES`], within what this node has room
    /// for. The room is to be kept for as long as the specification is.
    async fn read_spec(&self, stream: &mut Stream) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
        let mut body = Body::new(stream);
        let read = async {
            let mut spec = BytesMut::new();
            let mut room = self.intake.take(0)?;
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| Failure::Refused {
                    message: format!("the job did not arrive whole: {error}"),
                })?;
                let limit = config::MAX_SPEC_BYTES.min(self.intake.largest());
                if spec.len() + chunk.len() > limit {
                    let message = format!(
                        "the job is larger than {} MiB, which is what this node takes: write its frames to files and \
                         scan those, or give the node more --memory",
                        limit >> 20
                    );
                    return Err(Failure::Refused { message });
                }
                room.merge(self.intake.take(chunk.len())?);
                spec.extend_from_slice(&chunk);
            }
            Ok((spec.freeze(), room))
        };
        let outcome = read.await;
        if let Err(failure) = &outcome {
            body.refuse(failure).await;
        }
        outcome
    }

    /// Keeps an object. For a driver others get it too, so that it is not lost with this node.
    async fn keep_blob(&self, from: &Caller, stream: &mut Stream, blob: Blob) -> Result<(), Failure> {
        self.blobs.receive(blob, stream).await?;
        if !from.is_node() {
            self.blobs.spread(blob).await;
        }
        Ok(())
    }

    /// Keeps a copy that a peer sends.
    async fn keep(&self, stream: &mut Stream, partition: TaskId, meta: OutputMeta) -> Result<(), Failure> {
        let mut body = Body::new(stream);
        let promise = match self.store.disk().promise(meta.bytes()) {
            Ok(promise) => Arc::new(promise),
            Err(failure) => {
                body.refuse(&failure).await;
                return Err(failure);
            }
        };
        let received = async {
            let arrived = self.store.receive(partition, meta, &mut body, &promise).await?;
            body.end().await?;
            Ok::<_, BodyError>(arrived)
        };
        let arrived = received
            .await
            .map_err(|error| Failure::internal(format!("a copied partition was not received: {error}")))?;
        arrived.stored().await.map(drop)
    }
}

/// Waits for the next call on a stream.
async fn next_call(mut stream: Stream) -> Option<(Request, Stream)> {
    match timeout(KEPT_OPEN, read_frame(&mut stream)).await {
        Ok(Ok(request)) => Some((request, stream)),
        Ok(Err(error)) if error.is_garbage() => {
            tracing::debug!(%error, "a call cannot be read");
            None
        }
        // Most callers close it, or have nothing more to ask.
        Ok(Err(_)) | Err(_) => None,
    }
}

fn answer_of(proposed: Proposed) -> Response {
    match proposed {
        Proposed::Applied(Ok(())) => Response::Done,
        Proposed::Applied(Err(failure)) => Response::Failed(failure),
        Proposed::NotLeader(leader) => Response::NotLeader(leader),
        Proposed::NotNow(message) => Response::Failed(Failure::Unavailable { message }),
    }
}

/// Whose the jobs are that are submitted by this call: drivers take turns at the nodes.
fn owner(from: &Caller) -> u64 {
    match from {
        Caller::Node(node) => node.0,
        Caller::Driver(peer) | Caller::Guest { peer, .. } => node_id(peer).0,
    }
}

/// Refuses a call, whose body may be on its way.
async fn refuse(mut stream: Stream, request: &Request, failure: Failure) -> Result<(), Failure> {
    if request.has_body() {
        Body::new(stream).refuse(&failure).await;
        return Ok(());
    }
    reply(&mut stream, Response::Failed(failure)).await
}

async fn reply_with_graph(stream: &mut Stream, outcome: Result<StageGraph, Failure>) -> Result<(), Failure> {
    let encode = |graph| frame::encode(&graph).map(Bytes::from).map_err(Failure::internal);
    match outcome.and_then(encode) {
        Ok(graph) => {
            reply(stream, Response::Planned).await?;
            let chunks = futures::stream::iter(chunks_of(graph).map(Ok));
            send_body(stream, chunks).await.map(drop).map_err(Failure::internal)
        }
        Err(failure) => reply(stream, Response::Failed(failure)).await,
    }
}

async fn reply(stream: &mut Stream, response: Response) -> Result<(), Failure> {
    write_frame(stream, &response).await.map_err(Failure::internal)
}
