//! What is measured in stories, and what it should be.

/// Something that rounds measure.
#[derive(Debug, PartialEq)]
pub struct Measure {
    /// What, from when to when.
    pub name: &'static str,
    /// `ms`, `bytes`, `tasks`.
    pub unit: &'static str,
    /// What it should be over many rounds; none if it is only told.
    pub targets: &'static [Target],
}

/// A bound that a part of the values should keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// How much of the values: 0.5 for the median, 1 for all.
    pub part: f64,
    /// The bound.
    pub at_most: f64,
}

impl Target {
    /// What the part is called: `p50`, `p99`, `max`.
    pub fn part_name(&self) -> String {
        if self.part >= 1.0 { "max".to_owned() } else { format!("p{:.0}", self.part * 100.0) }
    }
}

/// How long the mesh is without a leader, in its parts.
pub(super) struct Takeover {
    /// Until another is elected.
    pub(super) elected: &'static Measure,
    /// Until a first task starts by its order, which shows that it schedules. The task may have waited for a
    /// slot that others had.
    pub(super) scheduling: &'static Measure,
}

/// The leader's process is gone, and its connections with it.
pub(super) const KILLED: Takeover = Takeover {
    elected: &Measure { name: "leader killed to next leader elected", unit: "ms", targets: &[] },
    scheduling: &Measure {
        name: "leader killed to next leader scheduling: a task starts by its order",
        unit: "ms",
        targets: &[Target { part: 0.5, at_most: 1_500.0 }, Target { part: 0.99, at_most: 3_000.0 }],
    },
};

/// The leader is silent, and its connections stand.
pub(super) const PAUSED: Takeover = Takeover {
    elected: &Measure { name: "leader paused to next leader elected", unit: "ms", targets: &[] },
    scheduling: &Measure {
        name: "leader paused to next leader scheduling: a task starts by its order",
        unit: "ms",
        targets: &[],
    },
};

pub(super) const CUT_OFF: Measure =
    Measure { name: "leader cut off to next leader elected", unit: "ms", targets: &[] };

pub(super) const HEALED: Measure =
    Measure { name: "network healed to the minority's driver having its result", unit: "ms", targets: &[] };

pub(super) const HANDED_OVER: Measure = Measure {
    name: "leader asked to leave to next leader elected",
    unit: "ms",
    targets: &[Target { part: 1.0, at_most: 300.0 }],
};

pub(super) const LEFT: Measure =
    Measure { name: "node asked to leave to its process ended", unit: "ms", targets: &[] };

pub(super) const NOTICED: Measure =
    Measure { name: "worker lost to the leader knowing", unit: "ms", targets: &[] };

pub(super) const ELSEWHERE: Measure = Measure {
    name: "worker lost to the last of its running tasks running elsewhere",
    unit: "ms",
    targets: &[Target { part: 0.99, at_most: 5_000.0 }],
};

pub(super) const EXCESS: Measure = Measure {
    name: "job with a lost worker, beyond undisturbed time and lost work",
    unit: "ms",
    targets: &[Target { part: 1.0, at_most: 5_000.0 }],
};

pub(super) const DRIVER_GAP: Measure =
    Measure { name: "driver's node killed to an answer through another", unit: "ms", targets: &[] };

pub(super) const WHOLE_AGAIN: Measure =
    Measure { name: "killed node restarted to the mesh whole again", unit: "ms", targets: &[] };

pub(super) const OF_ITS_JOB: Measure =
    Measure { name: "part of the job's later tasks that the joining node ran", unit: "%", targets: &[] };

pub(super) const FIRST_TASK: Measure =
    Measure { name: "joining node ready to its first task", unit: "ms", targets: &[] };

pub(super) const TOGETHER: Measure =
    Measure { name: "nodes started to one mesh that all see", unit: "ms", targets: &[] };

pub(super) const SPLIT: Measure =
    Measure { name: "meshes beyond the one", unit: "meshes", targets: &[Target { part: 1.0, at_most: 0.0 }] };

pub(super) const CARRIED_ON: Measure =
    Measure { name: "other node lost to the survivor accepting a new job", unit: "ms", targets: &[] };

pub(super) const RECOVERED: Measure =
    Measure { name: "`floe recover` started to the survivor leading", unit: "ms", targets: &[] };

pub(super) const RAN_AGAIN: Measure =
    Measure { name: "tasks done more than once", unit: "tasks", targets: &[] };

pub(super) const MADE_AGAIN: Measure = Measure { name: "output made again", unit: "bytes", targets: &[] };
