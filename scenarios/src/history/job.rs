//! The job as its drivers may rely on it.
//!
//! ```text
//!   Unknown ──submit──> Running ──by itself──> Succeeded | Failed
//!                          └──────cancel─────> Cancelled
//! ```

use super::linearize::Object;

/// What a driver asks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Accept it. Repeating it changes nothing.
    Submit,
    /// Where does it stand?
    Status,
    /// End it. An ended job stays as it is.
    Cancel,
    /// Its result.
    Result,
}

/// What a driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Call::Submit`] and [`Call::Cancel`]: agreed.
    Done,
    /// To [`Call::Status`], to [`Call::Result`] (whose rows say that it succeeded), and to a cancellation of a
    /// job that is not known.
    Is(Phase),
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It was never accepted.
    Unknown,
    /// It was accepted and has not ended.
    Running,
    /// It has a result.
    Succeeded,
    /// It ended with an error.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl Object for Phase {
    type Call = Call;
    type Answer = Answer;

    fn after(&self, call: &Call, answer: Option<&Answer>) -> Vec<Self> {
        let next = match (call, answer) {
            (Call::Submit, None | Some(Answer::Done)) => match self {
                Self::Unknown => Some(Self::Running),
                known => Some(*known),
            },
            (Call::Cancel, None) if *self == Self::Unknown => Some(Self::Unknown),
            (Call::Cancel, None | Some(Answer::Done)) => match self {
                Self::Unknown => None,
                Self::Running => Some(Self::Cancelled),
                ended => Some(*ended),
            },
            (Call::Status | Call::Result, None) => Some(*self),
            (_, Some(Answer::Is(phase))) => (phase == self).then_some(*self),
            (Call::Status | Call::Result, Some(Answer::Done)) => None,
        };
        next.into_iter().collect()
    }

    fn drift(&self) -> Vec<Self> {
        match self {
            Self::Running => vec![Self::Succeeded, Self::Failed],
            Self::Unknown | Self::Succeeded | Self::Failed | Self::Cancelled => Vec::new(),
        }
    }

    fn only_reads(call: &Call) -> bool {
        matches!(call, Call::Status | Call::Result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linearize::{Contradiction, Operation, check};
    use super::*;
    use Answer::{Done, Is};
    use Call::{Cancel, Result, Status, Submit};
    use Phase::{Cancelled, Failed, Running, Succeeded, Unknown};

    /// A history of calls, each `(client, call, from, to, answer)`; an answer of `None` never came.
    fn judge(calls: &[(usize, Call, u64, u64, Option<Answer>)]) -> std::result::Result<(), usize> {
        let operations: Vec<_> = calls
            .iter()
            .map(|&(client, call, invoked_ns, end, answer)| Operation {
                client,
                call,
                invoked_ns,
                returned: answer.map(|answer| (end, answer)),
            })
            .collect();
        check(Unknown, &operations).map_err(|contradiction| match contradiction {
            Contradiction::Impossible { operation, .. } => operation,
            Contradiction::Undecided => panic!("short histories are decided"),
        })
    }

    #[test]
    fn what_a_mesh_may_answer_passes() {
        // From end to end.
        let plain = [
            (0, Status, 0, 1, Some(Is(Unknown))),
            (0, Submit, 2, 5, Some(Done)),
            (1, Status, 6, 7, Some(Is(Running))),
            (0, Status, 8, 9, Some(Is(Succeeded))),
            (0, Result, 10, 20, Some(Is(Succeeded))),
        ];
        assert_eq!(judge(&plain), Ok(()));
        // While a submission is under way, others may see the job or not, but not lose it again.
        let early = [
            (0, Submit, 0, 10, Some(Done)),
            (1, Status, 1, 2, Some(Is(Unknown))),
            (1, Status, 3, 4, Some(Is(Running))),
        ];
        assert_eq!(judge(&early), Ok(()));
        // A submission without an answer may have been accepted, much later, or never; it may be repeated.
        let repeated = [
            (0, Submit, 0, 0, None),
            (1, Status, 5, 6, Some(Is(Unknown))),
            (0, Submit, 7, 9, Some(Done)),
            (1, Status, 10, 11, Some(Is(Failed))),
        ];
        assert_eq!(judge(&repeated), Ok(()));
        assert_eq!(judge(&[(0, Submit, 0, 0, None), (1, Status, 5, 6, Some(Is(Unknown)))]), Ok(()));
        // A cancellation that came too late changes nothing.
        let late = [
            (0, Submit, 0, 1, Some(Done)),
            (1, Cancel, 2, 9, Some(Done)),
            (0, Status, 10, 11, Some(Is(Succeeded))),
        ];
        assert_eq!(judge(&late), Ok(()));
        // One without an answer may take effect after others saw the job run.
        let slow = [
            (0, Submit, 0, 1, Some(Done)),
            (1, Cancel, 2, 0, None),
            (0, Status, 10, 11, Some(Is(Running))),
            (0, Status, 12, 13, Some(Is(Cancelled))),
        ];
        assert_eq!(judge(&slow), Ok(()));
    }

    #[test]
    fn a_lost_job_is_found() {
        let lost = [(0, Submit, 0, 1, Some(Done)), (0, Status, 2, 3, Some(Is(Unknown)))];
        assert_eq!(judge(&lost), Err(1));
        let lost_later = [
            (0, Submit, 0, 1, Some(Done)),
            (0, Status, 2, 3, Some(Is(Running))),
            (0, Cancel, 4, 5, Some(Is(Unknown))),
        ];
        assert_eq!(judge(&lost_later), Err(2));
    }

    #[test]
    fn an_end_that_is_taken_back_is_found() {
        for end in [Succeeded, Failed, Cancelled] {
            let back = [
                (0, Submit, 0, 1, Some(Done)),
                (0, Cancel, 1, 0, None),
                (1, Status, 2, 3, Some(Is(end))),
                (2, Status, 4, 5, Some(Is(Running))),
            ];
            assert_eq!(judge(&back), Err(3), "{end:?}");
        }
        let other_end = [
            (0, Submit, 0, 1, Some(Done)),
            (1, Status, 2, 3, Some(Is(Failed))),
            (0, Result, 4, 5, Some(Is(Succeeded))),
        ];
        assert!(judge(&other_end).is_err());
    }

    #[test]
    fn a_cancellation_that_did_not_hold_is_found() {
        // It was acknowledged, the job ran on all the same, and succeeded.
        let ran_on = [
            (0, Submit, 0, 1, Some(Done)),
            (0, Cancel, 2, 3, Some(Done)),
            (1, Status, 4, 5, Some(Is(Running))),
            (1, Status, 6, 7, Some(Is(Succeeded))),
        ];
        assert_eq!(judge(&ran_on), Err(2));
        let revived = [
            (0, Submit, 0, 1, Some(Done)),
            (1, Status, 2, 3, Some(Is(Running))),
            (0, Cancel, 4, 5, Some(Done)),
            (1, Status, 6, 7, Some(Is(Cancelled))),
            (0, Result, 8, 9, Some(Is(Succeeded))),
        ];
        assert_eq!(judge(&revived), Err(4));
    }

    #[test]
    fn a_stale_read_is_found() {
        let stale = [
            (0, Submit, 0, 1, Some(Done)),
            (0, Status, 2, 3, Some(Is(Succeeded))),
            (1, Status, 4, 5, Some(Is(Running))),
        ];
        assert_eq!(judge(&stale), Err(2));
        // The same answers at overlapping times are none.
        let at_once = [
            (0, Submit, 0, 1, Some(Done)),
            (0, Status, 2, 5, Some(Is(Succeeded))),
            (1, Status, 4, 6, Some(Is(Running))),
        ];
        assert_eq!(judge(&at_once), Ok(()));
        // A job that nobody cancelled.
        let nobody = [(0, Submit, 0, 1, Some(Done)), (1, Status, 2, 3, Some(Is(Cancelled)))];
        assert_eq!(judge(&nobody), Err(1));
    }
}
