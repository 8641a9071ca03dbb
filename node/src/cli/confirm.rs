//! Asking whoever sits at the terminal before something that cannot be undone.

use std::io::{IsTerminal, stdin};

use anyhow::{Context, ensure};

use super::output;

/// Whether the user wants it. Without a terminal nobody can be asked, which is an error that names `--yes`.
pub(super) async fn agree(question: &str) -> anyhow::Result<bool> {
    ensure!(
        stdin().is_terminal(),
        "{question}: nobody can be asked here whether that is wanted; say so with --yes"
    );
    output::note(format_args!("{question}.\nGo on? [y/N]"));
    // An abandoned read ends with the process.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        stdin().read_line(&mut line).map(|_| line)
    });
    let answer =
        answer.await.context("the terminal cannot be read")?.context("the terminal cannot be read")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
