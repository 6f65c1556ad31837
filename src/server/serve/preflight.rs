//! What a start with this configuration would meet, without starting anything: `realign doctor`. Every
//! check is the one that the start itself makes.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::operations::{OPEN, client_keys};
use super::tls::Tls;
use super::{ServerError, cores, files, memory};
use crate::config::keys::KeyDigest;
use crate::config::{Address, Config, ConfigError, admin_key};
use crate::state::{StateDb, StateError, state_place};
use realign_core::lock::{DirLock, Holder, LockError};
use realign_engine::adapter::generation::GenerationId;
use realign_engine::adapter::{AdapterStore, base_id};
use realign_model::host_memory::headroom;
use realign_model::{Described, ModelSource};

mod place;

/// Free space below which a disk is worth a warning: a few adapters and checkpoints of a small model.
const LITTLE: u64 = 1 << 30;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// The server starts, and something will not be as expected.
    Warning,
    /// The server does not start, or does not do what it is for.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub subject: &'static str,
    /// What was found, and how to mend it.
    pub text: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, text)
    }

    /// Something will not be as expected.
    pub fn warning(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Warning, subject, text)
    }

    /// The server does not start, or does not do what it is for.
    pub fn fault(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(Level::Fault, subject, text)
    }

    fn new(level: Level, subject: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            level,
            subject,
            text,
        }
    }
}

/// Looks at everything but policies and data. Blocks, reads the model's headers, and changes nothing.
pub fn look(config: &Config) -> Vec<Finding> {
    let running = running(config);
    let mut found = machine(config);
    found.extend(running.findings);
    found.extend(listeners(config, running.holder.as_ref()));
    found.push(keys(config));
    found.push(operators(config));
    found.extend(tls(config));
    found.extend(model(config));
    found.extend(disk(config));
    found.push(database(config));
    found.push(adapters(config));
    found.push(place::clock(&config.paths));
    found
}

fn machine(config: &Config) -> Vec<Finding> {
    let threads = config.engine.threads.unwrap_or_else(cores);
    let set = realign_backend::instruction_set();
    let text = format!("{} cores, {threads} threads, {}", cores(), set.name);
    let processor = match set.is_fast {
        true => Finding::ok("processor", text),
        false => Finding::warning(
            "processor",
            format!("{text}: answers are several times slower than with AVX2 or NEON"),
        ),
    };
    let server = &config.limits;
    let operators = config.server.admin_address.as_ref();
    let operators = operators.map_or(0, |_| server.max_admin_connections);
    let room = files::Room::find(server.max_connections, operators);
    let allowed = format!("room for {} connections", room.allowed);
    let open_files = match room.allowed < server.max_connections {
        false => Finding::ok("open files", allowed),
        true => Finding::warning("open files", format!("{allowed}: {}", files::TOO_FEW)),
    };
    vec![processor, open_files]
}

/// What holds the directories' locks.
struct Running {
    holder: Option<Holder>,
    findings: Vec<Finding>,
}

fn running(config: &Config) -> Running {
    const SUBJECT: &str = "directories in use";
    let paths = &config.paths;
    let places = [
        state_place(&paths.state),
        AdapterStore::place(&paths.adapters),
    ];
    let mut running = Running {
        holder: None,
        findings: Vec::new(),
    };
    for place in places {
        match DirLock::look(place) {
            Ok(None) => {}
            Ok(Some(holder)) => {
                let error = LockError::Held {
                    dir: place.dir.to_owned(),
                    holder: holder.clone().map(Box::new),
                    advice: "a second server here would not start",
                };
                running.holder = running.holder.or(holder);
                running
                    .findings
                    .push(Finding::ok(SUBJECT, error.to_string()));
            }
            Err(error) => running
                .findings
                .push(Finding::fault(SUBJECT, error.to_string())),
        }
    }
    if running.findings.is_empty() {
        let free = Finding::ok(SUBJECT, "no server runs on these directories");
        running.findings.push(free);
    }
    running
}

/// Whether the addresses can be listened on, or a server of ours does.
fn listeners(config: &Config, holder: Option<&Holder>) -> Vec<Finding> {
    let server = &config.server;
    let addresses = [Some(&server.address), server.admin_address.as_ref()];
    let look = |address: &Address| match place::listenable(address) {
        Ok(()) => Finding::ok("listener", format!("{address} is free")),
        Err(_) if holder.and_then(|h| h.listen.as_deref()) == Some(&address.to_string()) => {
            Finding::ok(
                "listener",
                format!("the running server listens on {address}"),
            )
        }
        // The operators' address is not in the lock file; it is that server's if there is one.
        Err(_) if holder.is_some() && Some(address) == server.admin_address.as_ref() => {
            Finding::ok(
                "listener",
                format!("{address} is in use while a server runs"),
            )
        }
        Err(source) => {
            let address = address.clone();
            let error = ServerError::Listen { address, source };
            Finding::fault("listener", error.to_string())
        }
    };
    addresses.into_iter().flatten().map(look).collect()
}

/// Who is let in.
fn keys(config: &Config) -> Finding {
    const SUBJECT: &str = "client keys";
    let server = &config.server;
    match client_keys(config) {
        Err(error) => Finding::fault(SUBJECT, error.to_string()),
        Ok(_) if server.lets_everyone_in() => {
            Finding::warning(SUBJECT, format!("{OPEN} ({})", server.address))
        }
        Ok(keys) if keys.is_empty() => Finding::ok(
            SUBJECT,
            "none: only this machine reaches the listener, and every program on it is let in",
        ),
        Ok(_) if server.tls.is_none() && !server.address.is_local() => Finding::warning(
            SUBJECT,
            "keys and texts cross the network in the clear: set server.tls_cert and \
             server.tls_key, or put a proxy that does TLS in front",
        ),
        Ok(keys) => Finding::ok(SUBJECT, format!("keys: {}", keys.len())),
    }
}

/// The key of operators, which a first start makes.
fn operators(config: &Config) -> Finding {
    const SUBJECT: &str = "operators' key";
    if let Some(key) = &config.server.admin_key {
        return match KeyDigest::parse(key) {
            Ok(_) => Finding::ok(SUBJECT, "server.admin_key"),
            Err(why) => Finding::fault(SUBJECT, format!("server.admin_key: {why}")),
        };
    }
    let path = config.paths.admin_key();
    match admin_key::read(&path) {
        Ok(Some(_)) => Finding::ok(SUBJECT, path.display().to_string()),
        Ok(None) => Finding::ok(SUBJECT, format!("the first start makes {}", path.display())),
        Err(error) => Finding::fault(SUBJECT, error.to_string()),
    }
}

fn tls(config: &Config) -> Option<Finding> {
    let files = config.server.tls.as_ref()?;
    Some(match Tls::load(files) {
        Ok(_) => Finding::ok("certificate", files.cert.display().to_string()),
        Err(error) => Finding::fault("certificate", error.to_string()),
    })
}

fn model(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "model";
    let device = match realign_backend::open(config.engine.device) {
        Ok(device) => device,
        Err(error) => return vec![Finding::fault("device", error.to_string())],
    };
    match ModelSource::parse(&config.model) {
        Ok(ModelSource::Hub { .. }) => {
            let text = format!(
                "{0} is looked up on its hub at each start; `realign model fetch {0}` fetches it \
                 now and prints a directory that --model takes",
                config.model
            );
            vec![Finding::warning(SUBJECT, text)]
        }
        Ok(source) => described(config, &*device, source),
        Err(error) => vec![Finding::fault(SUBJECT, error.to_string())],
    }
}

fn described(
    config: &Config,
    device: &dyn realign_model::ComputeDevice,
    source: ModelSource,
) -> Vec<Finding> {
    const SUBJECT: &str = "model";
    let read = source
        .fetch()
        .and_then(|files| Described::read(files, config.tokenizer.as_deref()));
    let model = match read {
        Ok(model) => model,
        Err(error) => return vec![Finding::fault(SUBJECT, error.to_string())],
    };
    let bytes = model.files.weight_bytes().unwrap_or_default();
    let text = format!(
        "{}: {}, {} layers, {} tokens, {} MiB",
        model.files.name(),
        model.spec.architecture,
        model.spec.layers,
        model.tokenizer.vocab_size(),
        bytes >> 20
    );
    let mut found = vec![Finding::ok(SUBJECT, text)];
    found.push(match model.chat.wanted() {
        None => Finding::ok("chat template", "the model has one"),
        Some(place) => Finding::warning(
            "chat template",
            format!(
                "the model has none, so /v1/chat/completions refuses conversations: take an \
                 instruction-tuned model, or write its template to {place}"
            ),
        ),
    });
    found.push(match memory::check(config, device) {
        Err(error) => Finding::fault("memory", error.to_string()),
        Ok(_) => host_memory(config, device, bytes),
    });
    found
}

fn host_memory(config: &Config, device: &dyn realign_model::ComputeDevice, model: u64) -> Finding {
    let on_host = device.free_bytes().is_none();
    let large = memory::large_cache(config, model).filter(|_| on_host);
    match (large, headroom()) {
        (Some((room, warning)), _) => Finding::warning(
            "memory",
            format!("{room}, the model takes {} MiB: {warning}", model >> 20),
        ),
        (None, Some(room)) => Finding::ok("memory", room.to_string()),
        (None, None) => Finding::ok("memory", "this system does not tell what is free"),
    }
}

/// Whether the directories can be written to, and what is left on their disks.
fn disk(config: &Config) -> Vec<Finding> {
    let paths = &config.paths;
    let mut wanted: Vec<(&'static str, PathBuf)> = vec![
        ("paths.state", paths.state.clone()),
        ("paths.adapters", paths.adapters.clone()),
    ];
    if let Some(log) = &config.compliance.decision_log {
        let dir = log.parent().filter(|dir| *dir != Path::new(""));
        wanted.push((
            "compliance.decision_log",
            dir.unwrap_or(Path::new(".")).to_owned(),
        ));
    }
    let look = |(key, dir): (&'static str, PathBuf)| {
        let shown = dir.display();
        if let Err((place, error)) = place::writable(&dir) {
            let place = place.display();
            return Finding::fault(
                "disk",
                format!("{key}: {place} cannot be written to: {error}; change its owner or {key}"),
            );
        }
        match files::free_bytes(&place::existing(&dir)) {
            Some(free) if free < LITTLE => Finding::warning(
                "disk",
                format!(
                    "{key}: {shown} has {} MiB left; [retention] bounds what is kept",
                    free >> 20
                ),
            ),
            Some(free) => Finding::ok("disk", format!("{key}: {shown}, {} GiB free", free >> 30)),
            None => Finding::ok("disk", format!("{key}: {shown}")),
        }
    };
    wanted.into_iter().map(look).collect()
}

fn database(config: &Config) -> Finding {
    const SUBJECT: &str = "database";
    let path = config.paths.database();
    if !path.exists() {
        return Finding::ok(SUBJECT, format!("the first start makes {}", path.display()));
    }
    match StateDb::open_as_it_is(&path) {
        Ok(_) => Finding::ok(SUBJECT, path.display().to_string()),
        Err(StateError::Older { .. }) => Finding::ok(
            SUBJECT,
            format!(
                "{} is of an earlier release; a start updates it",
                path.display()
            ),
        ),
        Err(error) => Finding::fault(SUBJECT, error.to_string()),
    }
}

fn adapters(config: &Config) -> Finding {
    const SUBJECT: &str = "adapters";
    let looked = AdapterStore::open(&config.paths.adapters)
        .and_then(|store| Ok((store.list()?, store.current()?)));
    match looked {
        Err(error) => Finding::fault(SUBJECT, error.to_string()),
        Ok((listed, None)) => {
            Finding::ok(SUBJECT, format!("{}; the base model serves", listed.len()))
        }
        Ok((listed, Some(current))) if listed.iter().any(|l| l.id == current) => {
            Finding::ok(SUBJECT, format!("{}; {current} serves", listed.len()))
        }
        Ok((listed, Some(current))) if is_base(config, &current) => {
            Finding::ok(SUBJECT, format!("{}; the base model serves", listed.len()))
        }
        Ok((_, Some(current))) => Finding::warning(
            SUBJECT,
            ConfigError::Value {
                key: "adapters/CURRENT",
                value: current.to_string(),
                allowed: "which is not there: adapters.on_missing decides what serves; `realign \
                          adapters list` shows what there is",
            }
            .to_string(),
        ),
    }
}

/// Whether a generation is the configured model itself. All of its files are read for that, where they
/// are not known.
fn is_base(config: &Config, id: &GenerationId) -> bool {
    match ModelSource::parse(&config.model) {
        Ok(ModelSource::Hub { .. }) | Err(_) => false,
        Ok(source) => {
            let cache = config.engine.weights_cache.cache();
            let files = source.fetch();
            let files = files.and_then(|files| files.quantised(config.engine.quantisation));
            let hash = files.and_then(|files| files.cached(cache).base_hash());
            hash.is_ok_and(|hash| base_id(&hash) == *id)
        }
    }
}

#[cfg(test)]
mod tests;
