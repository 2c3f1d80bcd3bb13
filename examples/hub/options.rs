//! The command line.

use std::{net::SocketAddr, str::FromStr, time::Duration};

pub(crate) const USAGE: &str = "usage: hub [--listen ADDR] [--history N] [--max N] [--max-per-address N] \
    [--lifetime SECONDS] [--unready SECONDS] [--drain SECONDS] [--redis URL | --nats URL]";

/// Where the log is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Log {
    Memory,
    #[cfg(feature = "nats")]
    Nats(String),
    #[cfg(feature = "redis")]
    Redis(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// How many events of each topic are kept for those who come back.
    pub(crate) history: usize,
    /// How many streams there may be.
    pub(crate) max: usize,
    /// How many streams there may be from one address.
    pub(crate) max_per_address: usize,
    /// When a stream ends, for its client to come back.
    pub(crate) lifetime: Duration,
    /// For how long it goes on as before, but for `/ready`, when it is told to stop.
    pub(crate) unready: Duration,
    /// Over which time the streams end then, so that their clients do not all come back at once.
    pub(crate) drain: Duration,
    pub(crate) log: Log,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            history: 1000,
            max: 10_000,
            max_per_address: 1000,
            lifetime: Duration::from_secs(3600),
            unready: Duration::ZERO,
            drain: Duration::from_secs(5),
            log: Log::Memory,
        }
    }
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = args.next() {
            let mut value = || {
                let value = args.next();
                value.ok_or_else(|| format!("{name} needs a value; {USAGE}"))
            };
            match name.as_str() {
                "--listen" => options.listen = address(&value()?)?,
                "--history" => options.history = number(&value()?, 1)?,
                "--max" => options.max = number(&value()?, 1)?,
                "--max-per-address" => options.max_per_address = number(&value()?, 1)?,
                "--lifetime" => options.lifetime = seconds(&value()?, 1)?,
                "--unready" => options.unready = seconds(&value()?, 0)?,
                "--drain" => options.drain = seconds(&value()?, 1)?,
                #[cfg(feature = "nats")]
                "--nats" => options.log = Log::Nats(value()?),
                #[cfg(feature = "redis")]
                "--redis" => options.log = Log::Redis(value()?),
                #[cfg(not(all(feature = "nats", feature = "redis")))]
                "--nats" | "--redis" => {
                    let feature = &name[2..];
                    return Err(format!(
                        "{name} needs a hub built with `--features {feature}`"
                    ));
                }
                _ => return Err(format!("{name} is unknown; {USAGE}")),
            }
        }
        Ok(options)
    }
}

fn address(value: &str) -> Result<SocketAddr, String> {
    let address = value.parse();
    address.map_err(|_| format!("{value} is no address, as 127.0.0.1:3000 is"))
}

fn number<N: FromStr + PartialOrd + From<u8>>(value: &str, least: u8) -> Result<N, String> {
    let number = value.parse().ok().filter(|number| *number >= least.into());
    number.ok_or_else(|| format!("{value} is no number from {least} on"))
}

fn seconds(value: &str, least: u8) -> Result<Duration, String> {
    let seconds: u32 = number(value, least)?;
    Ok(Duration::from_secs(u64::from(seconds)))
}
