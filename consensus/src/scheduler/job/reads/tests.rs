//! Who reads what.

use proptest::prelude::*;

use super::*;

fn read() -> impl Strategy<Value = Read> {
    let number = || prop_oneof![0..6_u32, Just(u32::MAX)];
    prop_oneof![
        Just(Read::All),
        Just(Read::Bucket),
        number().prop_map(|first| Read::Partition { first }),
        number().prop_map(|size| Read::Group { size: size.max(1) }),
    ]
}

proptest! {
    #[test]
    fn a_task_reads_a_partition_that_has_it_as_reader(
        read in read(),
        tasks in 1..12_usize,
        produced in 1..12_usize,
    ) {
        for task in 0..tasks as u32 {
            for partition in 0..produced as u32 {
                let reads = partitions(read, task, produced).contains(&partition);
                let is_read = consumers(read, partition, tasks).contains(&task);
                prop_assert_eq!(reads, is_read, "task {} and partition {}", task, partition);
            }
        }
    }
}

#[test]
fn groups_are_neighbours_and_the_last_is_what_is_left() {
    let groups: Vec<_> = (0..4).map(|task| partitions(Read::Group { size: 3 }, task, 7)).collect();
    assert_eq!(groups, [0..3, 3..6, 6..7, 7..7]);
}
