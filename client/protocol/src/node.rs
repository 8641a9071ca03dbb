//! Nodes as the mesh and its users see them.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// Starts that an [`Incarnation`] knows the marks of. A node that has missed more of another's takes its word.
pub const MAX_MARKS: usize = 16;

/// The longest name of a node, in bytes: more than any machine's own, and a column of a table.
pub const MAX_NAME_BYTES: usize = 128;

/// The most addresses of a node, and the longest, in bytes.
const MAX_ADDRESSES: usize = 64;
const MAX_ADDRESS_BYTES: usize = 512;

/// Whether a node may be called that: the text is shown to whoever looks at the mesh. The error says what is wrong.
pub fn check_name(name: &str) -> Result<(), String> {
    let blank = name.trim().is_empty();
    if blank || name.len() > MAX_NAME_BYTES || name.contains(|c| char::is_control(c) || is_unseen(c)) {
        let shown: String = name.chars().take(32).collect();
        return Err(format!(
            "a node's name has 1 to {MAX_NAME_BYTES} bytes, not all of them blank, and nothing that is not seen, unlike \
             `{}`",
            shown.escape_debug()
        ));
    }
    Ok(())
}

/// Whether a character has no shape of its own and changes how the others are shown: it breaks lines, turns the direction
/// of writing, or is of no width.
pub fn is_unseen(c: char) -> bool {
    let ranges = [
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{e0000}'..='\u{e007f}',
    ];
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
        || ranges.iter().any(|range| range.contains(&c))
}

/// Which start of a node this is, of all from its data directory.
///
/// A directory that was copied, or put back from a backup, counts on from where it was then. So each start also draws a
/// mark by chance, and knows those of the starts before it: who knows of another start with the same number knows that
/// this directory has missed that one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Counts the starts, from 1.
    pub number: u64,
    /// The mark of this start, and those of up to [`MAX_MARKS`] - 1 before it, the latest first.
    pub marks: Vec<u32>,
}

impl Incarnation {
    /// The start after this one.
    pub fn next(&self, mark: u32) -> Self {
        let former = self.marks.iter().copied().take(MAX_MARKS - 1);
        Self { number: self.number.saturating_add(1), marks: std::iter::once(mark).chain(former).collect() }
    }

    /// Whether this is the start that is known, or one after it on the same directory.
    pub fn follows(&self, known: &Self) -> bool {
        if self == known {
            return true;
        }
        let Some(ago) = self.number.checked_sub(known.number) else { return false };
        match usize::try_from(ago).ok().and_then(|ago| self.marks.get(ago)) {
            Some(mark) => known.marks.first() == Some(mark),
            None => ago >= MAX_MARKS as u64,
        }
    }
}

/// What the mesh knows of a member for good: an entry of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its libp2p peer id, in text.
    pub peer: String,
    /// What its owner calls it.
    pub name: String,
    /// Where it listens, as multiaddresses ending in `/p2p/PEER`.
    pub addresses: Vec<String>,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// Its memory budget for tasks and partitions.
    pub memory_bytes: u64,
    /// The version of its `floe`.
    pub version: String,
    /// Which start of it this is.
    pub incarnation: Incarnation,
}

impl Member {
    /// Whether a mesh may take it in as it says it is: all of it is kept by every node. The error says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        check_name(&self.name)?;
        let long = |text: &String| text.len() > MAX_ADDRESS_BYTES;
        if self.addresses.len() > MAX_ADDRESSES
            || self.addresses.iter().chain([&self.peer, &self.version]).any(long)
            || self.incarnation.marks.len() > MAX_MARKS
        {
            return Err(format!(
                "node {} says more of itself than any node has to say: at most {MAX_ADDRESSES} addresses of \
                 {MAX_ADDRESS_BYTES} bytes each",
                self.name
            ));
        }
        Ok(())
    }
}

/// What a node has to do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks running.
    pub running: u32,
    /// Bytes of partitions in memory plus running tasks' reservations.
    pub memory_used_bytes: u64,
    /// Bytes of partitions on disk.
    pub spilled_bytes: u64,
    /// What the disk of its data directory takes yet.
    pub disk_free_bytes: u64,
    /// Whether that is so little that it takes no work until there is more.
    pub disk_short: bool,
}

/// A node's part in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRole {
    /// Leads and schedules.
    Leader,
    /// Votes.
    Voter,
    /// Replicates without a vote.
    Learner,
}

impl NodeRole {
    /// One word for tables: `leader`, `voter`, `learner`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
        }
    }
}

/// A member as `floe status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The replicated part.
    pub member: Member,
    /// Its part in Raft.
    pub role: NodeRole,
    /// Whether the answering node's leader hears from it.
    pub alive: bool,
    /// Its load, from hints.
    pub load: Load,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_of_one_line() {
        for good in ["a", "Ärger im Büro 2", &"x".repeat(MAX_NAME_BYTES)] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "a\nb", "\u{1b}[31mred", "a\0", "\u{9b}1m", &"x".repeat(MAX_NAME_BYTES + 1)] {
            let error = check_name(bad).unwrap_err();
            assert!(!error.contains(char::is_control) && error.len() < 200, "{error}");
        }
    }
}
