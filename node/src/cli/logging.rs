//! Logs, to stderr.

use std::io::{IsTerminal, stderr};

use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How much is logged, and how.
#[derive(Args, Debug)]
pub(super) struct Logging {
    /// Log more to stderr: -v what the node does, -vv every detail
    ///
    /// FLOE_LOG sets it by module, for example `FLOE_LOG=floe=debug,libp2p=info`, and wins over -v.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Logging")]
    verbose: u8,
    /// How log lines are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, help_heading = "Logging")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Logging {
    /// Begins to log. Called once, first thing.
    pub(super) fn start(&self) {
        let default = match self.verbose {
            // Kademlia warns whenever it is alone, which a mesh's first node always is.
            0 => "warn,libp2p_kad=error",
            1 => {
                "warn,libp2p_kad=error,floe=info,floe_client=info,floe_consensus=info,floe_network=info,floe_query=info,floe_transport=info"
            }
            2 => {
                "info,floe=debug,floe_client=debug,floe_consensus=debug,floe_network=debug,floe_query=debug,floe_transport=debug"
            }
            _ => "trace",
        };
        let filter = std::env::var("FLOE_LOG").ok().filter(|filter| !filter.is_empty());
        let filter = filter.as_deref().unwrap_or(default);
        let (filter, mistake) = match EnvFilter::try_new(filter) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        };
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(stderr)
            .with_ansi(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
        match self.log_format {
            LogFormat::Text => lines.init(),
            LogFormat::Json => lines.json().init(),
        }
        if let Some(error) = mistake {
            tracing::warn!("FLOE_LOG is not understood and ignored: {error}");
        }
    }
}
