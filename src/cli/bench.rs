//! `realign bench`: how fast a model runs here.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{CliError, DeviceArgs, EXIT_OK, GlobalArgs, bench_shape};
use realign_align::pipeline::Learner;
use realign_engine::EngineConfig;
use realign_lab::bench::learning::LearningCase;
use realign_lab::bench::load::{Load, LoadReport};
use realign_lab::bench::model::ModelBench;
use realign_lab::bench::{BenchError, Options, Row, Samples};
use realign_lab::evaluation::memory;
use realign_model::LoadedModel;
use realign_server::config::Config;

/// How long a server may take to load its model.
const START: Duration = Duration::from_secs(120);

/// Flags of `bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  realign bench                                   prefill, decode and batches in this process
  realign bench --swap-seconds 5                  and what a swap every second costs 8 streams
  realign bench --learning mini                   score and train 96 pairs, as JSON
  realign bench --serve                           start a server and load it over HTTP
  realign bench --url http://127.0.0.1:8080/v1    load a server that runs already, any OpenAI-compatible one
Cases run in turn, repetition by repetition; a figure is the median with the smallest and largest beside it.")]
pub(crate) struct BenchArgs {
    /// Tokens of the prompt that prefill is measured with
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens that each stream generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub(crate) generate_tokens: usize,
    /// Streams of the batch cases in this process; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) streams: usize,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) repetitions: u16,
    /// Rank of the random adapter on q and v; 0 leaves the adapter cases out
    #[arg(long, value_name = "RANK", default_value_t = 16)]
    pub(crate) rank: usize,
    /// Seconds of the case that swaps generations every second; 0 leaves it out
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) swap_seconds: u64,
    /// Measure a model of these shapes with random weights instead of one from a file: qwen2.5-7b,
    /// gemma-2-9b, llama-3.1-8b, llama-3.2-1b, qwen3-30b-a3b (experts; not on CUDA), or tiny to try
    /// the command; `:q4_0`, `:q4_1`, `:q8_0`, `:q4_k` or `:q6_k` behind it keeps the weights as integers of that type, `:bf16` or `:f16` as
    /// floats of 16 bits on the CPU (without it: f32 there, 16 bits on a CUDA device)
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["url", "serve", "learning"])]
    pub(crate) shape: Option<String>,
    /// Streams of the batch cases with --shape
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "8,32"
    )]
    pub(crate) shape_streams: Vec<usize>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Measure scoring or training instead, and print JSON
    #[arg(long, value_name = "CASE", conflicts_with_all = ["url", "serve"])]
    pub(crate) learning: Option<LearningCase>,
    /// Start a server of its own and measure over HTTP instead
    #[arg(long, conflicts_with = "url")]
    pub(crate) serve: bool,
    /// Measure a running server over HTTP instead; the address ends in /v1
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Key for --url
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) api_key: Option<String>,
    /// Temperature that tokens are drawn at; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Numbers of concurrent streams over HTTP
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "1,4,8,16"
    )]
    pub(crate) concurrency: Vec<usize>,
    /// Words of each prompt over HTTP, about as many tokens
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) prompt_words: usize,
    /// Requests that each stream makes over HTTP, one after the other
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) requests: usize,
    /// First prompt's number: the same number gives the same prompts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) round: usize,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

fn temperature(text: &str) -> Result<f32, String> {
    let given = text.parse::<f32>().ok();
    let allowed = given.filter(|t| (0.0..=2.0).contains(t));
    allowed.ok_or_else(|| "a temperature is from 0 to 2".into())
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run(
    args: &BenchArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    if let Some(case) = args.learning {
        learning(args, case, global, out)?;
        return Ok(EXIT_OK);
    }
    match (&args.url, args.serve) {
        (Some(_), _) if global.device.is_some() => {
            return Err(CliError::DeviceUnused("with --url: the server has its own"));
        }
        (Some(url), _) => over_http(args, url, global.json, out)?,
        (None, true) => {
            let server = Server::start(args, global)?;
            over_http(args, &server.url, global.json, out)?;
        }
        (None, false) => in_process(args, global, out)?,
    }
    Ok(EXIT_OK)
}

fn learning(
    args: &BenchArgs,
    case: LearningCase,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let resolved = global.resolve()?;
    let loaded = LoadedModel::load(
        resolved.model_choice(),
        &*realign_backend::open(resolved.engine.device)?,
    )?;
    memory::reset_peak();
    let learner = Learner::new(&loaded);
    let mut figures = realign_lab::bench::learning::run(&learner, case, args.repetitions.into())?;
    figures["peak_bytes"] = json!(memory::peak_bytes());
    writeln!(out, "{figures}")?;
    Ok(())
}

fn in_process(args: &BenchArgs, global: &GlobalArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let resolved = global.resolve()?;
    if let Some(name) = &args.shape {
        return with_shape(name, args, (&resolved, global.json), out);
    }
    let device = realign_backend::open(resolved.engine.device)?;
    let loaded = LoadedModel::load(resolved.model_choice(), &*device)?;
    let default = EngineConfig::default();
    let config = EngineConfig {
        threads: args.threads.unwrap_or(default.threads),
        kv_type: resolved.engine.kv_type,
        precision: resolved.engine.precision,
        // A generation that repeats itself would be drafted: what is measured is a token a step.
        draft_tokens: 0,
        ..default
    };
    let options = Options {
        prompt_tokens: args.prompt_tokens,
        generate_tokens: args.generate_tokens,
        streams: args.streams,
        repetitions: args.repetitions.into(),
        rank: args.rank,
        swap_seconds: args.swap_seconds,
        temperature: args.temperature,
    };
    let mut bench = ModelBench::start(&loaded, config, options)?;
    let progress = Progress::new(global.json);
    let rows = bench.run(|what| progress.say(what))?;
    progress.clear();
    if global.json {
        let report = json!({"model": &*loaded.name, "threads": config.threads, "rows": rows});
        return Ok(writeln!(out, "{report}")?);
    }
    writeln!(out, "{}, {} threads", loaded.name, config.threads)?;
    Ok(rows.iter().try_for_each(|row| write_row(row, out))?)
}

fn with_shape(
    name: &str,
    args: &BenchArgs,
    (config, as_json): (&Config, bool),
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let device = realign_backend::open(config.engine.device)?;
    let progress = Progress::new(as_json);
    let report = bench_shape::run(name, (args, &*device), &|what| progress.say(what))?;
    progress.clear();
    if as_json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&report)?)?);
    }
    Ok(bench_shape::write(&report, out)?)
}

pub(super) fn write_row(row: &Row, out: &mut dyn Write) -> std::io::Result<()> {
    let rate = &row.tokens_per_second;
    write!(
        out,
        "{:<54} {:>8.1} tokens/s  ({:.1} to {:.1})",
        row.name,
        rate.median(),
        rate.min(),
        rate.max()
    )?;
    if let (Some(ratio), Some(against)) = (&row.ratio, &row.against) {
        write!(out, "  {:.3} of `{against}`", ratio.median())?;
    }
    if let Some(gap) = &row.longest_gap_over_p99 {
        write!(out, "  longest wait {:.1} × p99", gap.median())?;
    }
    writeln!(out)
}

fn over_http(
    args: &BenchArgs,
    url: &str,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut load = Load {
        url: url.trim_end_matches('/').to_owned(),
        model: None,
        api_key: args.api_key.clone(),
        prompt_words: args.prompt_words,
        max_tokens: args.generate_tokens,
        requests_per_stream: args.requests.max(1),
        temperature: args.temperature,
    };
    load.resolve_model()?;
    let progress = Progress::new(as_json);
    let mut all: Vec<Vec<LoadReport>> = vec![Vec::new(); args.concurrency.len()];
    for repetition in 0..usize::from(args.repetitions) {
        for (streams, reports) in args.concurrency.iter().zip(&mut all) {
            progress.say(&format!("{}: {streams} streams", repetition + 1));
            reports.push(load.run(*streams, args.round + repetition)?);
        }
    }
    progress.clear();
    if as_json {
        let report = json!({"url": load.url, "model": load.model, "loads": all});
        return Ok(writeln!(out, "{report}")?);
    }
    writeln!(
        out,
        "{:>7} {:>10} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}",
        "streams", "tokens/s", "TTFT p50", "TTFT p99", "ITL p50", "p95", "p99", "max ms"
    )?;
    Ok(all
        .iter()
        .try_for_each(|reports| write_load(reports, out))?)
}

fn write_load(reports: &[LoadReport], out: &mut dyn Write) -> std::io::Result<()> {
    let median = |f: &dyn Fn(&LoadReport) -> f64| Samples(reports.iter().map(f).collect()).median();
    let streams = reports.first().map_or(0, |r| r.streams);
    let [first, late] = [0, 1].map(|i| median(&|r| r.ttft_ms[i]));
    let [p50, p95, p99, max] = [0, 1, 2, 3].map(|i| median(&|r| r.inter_token_ms[i]));
    writeln!(
        out,
        "{streams:>7} {:>10.1} {first:>9.1} {late:>9.1} {p50:>8.2} {p95:>8.2} {p99:>8.2} {max:>8.2}",
        median(&|r| r.tokens_per_second)
    )
}

/// What runs now, on a terminal in place and elsewhere a line each, never among the results.
struct Progress {
    in_place: bool,
    silent: bool,
}

impl Progress {
    fn new(as_json: bool) -> Self {
        let in_place = std::io::stderr().is_terminal();
        Self {
            in_place,
            silent: as_json && !in_place,
        }
    }

    fn say(&self, what: &str) {
        match (self.silent, self.in_place) {
            (true, _) => {}
            (false, true) => eprint!("\r\x1b[K{what}"),
            (false, false) => eprintln!("{what}"),
        }
    }

    fn clear(&self) {
        if self.in_place && !self.silent {
            eprint!("\r\x1b[K");
        }
    }
}

/// A server in a child process with directories of its own; ends when dropped.
struct Server {
    child: Child,
    url: String,
    folder: std::path::PathBuf,
}

impl Server {
    fn start(args: &BenchArgs, global: &GlobalArgs) -> Result<Self, CliError> {
        let model = global.resolve()?.model;
        let port = free_port().map_err(BenchError::from)?;
        let folder = std::env::temp_dir().join(format!("realign-bench-{}", std::process::id()));
        for part in ["policies", "preferences", "adapters", "state"] {
            std::fs::create_dir_all(folder.join(part)).map_err(BenchError::from)?;
        }
        let mut command = command(&model, port, &folder).map_err(BenchError::from)?;
        if let Some(threads) = args.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        if let Some(device) = &global.device {
            command.args(["--device", device]);
        }
        let child = command.spawn().map_err(BenchError::from)?;
        let mut server = Self {
            child,
            url: format!("http://127.0.0.1:{port}/v1"),
            folder,
        };
        server.wait(port)?;
        Ok(server)
    }

    fn wait(&mut self, port: u16) -> Result<(), BenchError> {
        let failed = |reason: String| BenchError::Server {
            url: format!("127.0.0.1:{port}"),
            reason,
        };
        let started = Instant::now();
        while started.elapsed() < START {
            if let Some(status) = self.child.try_wait()? {
                return Err(failed(format!("the server ended at once ({status})")));
            }
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(());
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "another process does not say when it listens"
            )]
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(failed("the server did not listen in time".into()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; nothing of its folder is of use afterwards.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

/// The command that serves a model from directories of its own.
fn command(model: &str, port: u16, folder: &Path) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let part = |name: &str| folder.join(name);
    command
        .args(["serve", "--host", "127.0.0.1", "--model", model])
        .args(["--port", &port.to_string()])
        .arg("--policies")
        .arg(part("policies"))
        .arg("--preferences")
        .arg(part("preferences"))
        .arg("--adapters")
        .arg(part("adapters"))
        .arg("--state")
        .arg(part("state"))
        .env("REALIGN_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(command)
}

fn free_port() -> std::io::Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use realign_model::test_support::test_model_path;

    #[test]
    fn every_case_gives_a_rate_and_comparisons_a_ratio() {
        let args = BenchArgs {
            learning: None,
            prompt_tokens: 8,
            generate_tokens: 4,
            streams: 2,
            repetitions: 2,
            rank: 2,
            swap_seconds: 1,
            temperature: 0.0,
            threads: None,
            shape: None,
            shape_streams: vec![8],
            serve: false,
            url: None,
            api_key: None,
            concurrency: vec![1],
            prompt_words: 4,
            requests: 1,
            round: 0,
            device: DeviceArgs::default(),
        };
        let global = GlobalArgs {
            json: true,
            model: Some(test_model_path().to_string_lossy().into_owned()),
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        assert_eq!(run(&args, &global, &mut out).unwrap(), EXIT_OK);
        let report: Value = serde_json::from_slice(&out).unwrap();
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 8, "{report}");
        for row in rows {
            assert_eq!(row["tokens_per_second"].as_array().unwrap().len(), 2);
            assert!(row["tokens_per_second"][0].as_f64().unwrap() > 0.0, "{row}");
        }
        let compared = rows.iter().filter(|r| r["ratio"].is_array());
        assert_eq!(compared.count(), 4);
    }

    #[test]
    fn a_shape_is_measured_without_any_file() {
        let arguments = [
            "bench",
            "--shape",
            "tiny",
            "--prompt-tokens",
            "8",
            "--generate-tokens",
            "4",
            "--repetitions",
            "1",
            "--rank",
            "2",
            "--shape-streams",
            "2,3",
        ];
        let mut command = <BenchArgs as clap::Args>::augment_args(clap::Command::new("bench"));
        let matches = command.try_get_matches_from_mut(arguments).unwrap();
        let mut args = <BenchArgs as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        let global = GlobalArgs {
            json: true,
            device: Some("cpu".into()),
            ..GlobalArgs::default()
        };
        let mut out = Vec::new();
        assert_eq!(run(&args, &global, &mut out).unwrap(), EXIT_OK);
        let report: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["rows"].as_array().unwrap().len(), 9, "{report}");
        let trained = &report["training"]["tokens_per_second"][0];
        assert!(trained.as_f64().unwrap() > 0.0, "{report}");
        args.shape = Some("gpt".into());
        let error = run(&args, &global, &mut out).unwrap_err().to_string();
        assert!(
            error.contains("qwen2.5-7b") && error.contains("tiny"),
            "{error}"
        );
        args.shape = Some("tiny:q9".into());
        let error = run(&args, &global, &mut out).unwrap_err().to_string();
        assert!(error.contains("q4_0") && error.contains("q6_k"), "{error}");
    }

    #[test]
    fn sizes_beyond_the_model_are_refused_with_the_limit() {
        let args = ["bench", "--prompt-tokens", "999999", "--streams", "0"];
        let mut command = <BenchArgs as clap::Args>::augment_args(clap::Command::new("bench"));
        let matches = command.try_get_matches_from_mut(args).unwrap();
        let args = <BenchArgs as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        let global = GlobalArgs {
            model: Some(test_model_path().to_string_lossy().into_owned()),
            ..GlobalArgs::default()
        };
        let error = run(&args, &global, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--prompt-tokens"), "{error}");
    }
}
