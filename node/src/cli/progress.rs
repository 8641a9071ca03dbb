//! A job's progress on a terminal.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use floe_protocol::{JobStatus, StageProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::table;

/// A progress bar on stderr where that is a terminal, else nothing. It is gone when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = ProgressBar::new(0);
        if stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {elapsed} {wide_msg}"));
            bar.set_message("planning");
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar }
    }

    /// Shows where the job stands.
    pub(super) fn show(&self, status: &JobStatus) {
        let (done, tasks) = status.tasks();
        let tasks = u64::from(tasks);
        if self.bar.length() != Some(tasks) {
            self.bar.set_length(tasks);
            self.bar.set_style(style("{spinner} {elapsed} [{bar:24}] {pos}/{len} tasks  {wide_msg}"));
        }
        self.bar.set_position(done.into());
        self.bar.set_message(status.waits_for.clone().unwrap_or_else(|| message(&status.stages)));
    }

    /// Prints what stays, above the bar.
    pub(super) fn suspended(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are constants; should one be wrong, the default is as good.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

/// What the stages that are at work do, and what came out so far.
fn message(stages: &[StageProgress]) -> String {
    let at_work: Vec<&str> =
        stages.iter().filter(|stage| stage.running > 0).map(|stage| stage.name.as_str()).collect();
    let rows = stages.iter().map(|stage| stage.rows).sum();
    let bytes = stages.iter().map(|stage| stage.bytes).sum();
    format!("{}  {} rows, {} out", at_work.join(", "), table::count(rows), table::bytes(bytes))
}
