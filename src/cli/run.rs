//! From arguments to a command that runs.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use realign_server::config::Config;
use realign_server::serve::gateway::GatewayServer;
use realign_server::serve::{EXIT_STUCK, Server, ServerError, keep_hangups};

use crate::{
    Cli, CliError, Command, EXIT_FAILED, EXIT_OK, EXIT_USAGE, adapters, bench, demo, doctor, eval,
    exam, fleet, gather, init, keys, logs, model, plan, policy, preferences, score, top, train,
    triage,
};

/// How long tasks that block may take once the server has ended.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// The `realign` program: reads the arguments and runs the command that they name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let logs = match logs::init(cli.command.is_short()) {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(cli, logs) {
        Ok(code) => ExitCode::from(code),
        // Whatever reads the output, such as `head`, has seen enough.
        Err(error) if is_cut_off(&error) => ExitCode::from(EXIT_OK),
        Err(error) => {
            // Every message includes its cause; printing the chain would repeat it.
            eprintln!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn is_cut_off(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(CliError::Output(error)) => error.kind() == ErrorKind::BrokenPipe,
        _ => false,
    }
}

fn run(cli: Cli, logs: logs::Logs) -> anyhow::Result<u8> {
    let cli = cli.with_device()?;
    match &cli.command {
        Command::Serve(args) => serve(args.resolve(&cli.global)?, logs),
        Command::Control(args) => serve(args.resolve(&cli.global)?, logs),
        Command::Gateway(args) => gateway(args.resolve(&cli.global)?),
        Command::Fleet(command) => Ok(fleet::run(command, &cli.global, &mut stdout())?),
        Command::Demo(args) => Ok(demo::run(args, &cli.global, &mut stdout())?),
        Command::Init(args) => Ok(init::run(args, &cli.global, &mut stdout())?),
        Command::Doctor(args) => Ok(doctor::run(args, &cli.global, &mut stdout())?),
        Command::Policy(command) => Ok(policy::run(command, &cli.global, &mut stdout())?),
        Command::Triage(args) => Ok(triage::run_triage(args, &cli.global, &mut stdout())?),
        Command::Plan(args) => Ok(plan::run(args, &cli.global, &mut stdout())?),
        Command::Score(args) => Ok(score::run(args, &cli.global, &mut stdout())?),
        Command::Train(args) => Ok(train::run(args, &cli.global, &mut stdout())?),
        Command::Eval(command) => Ok(eval::run(command, &cli.global, &mut stdout())?),
        Command::Adapters(command) => Ok(adapters::run(command, &cli.global, &mut stdout())?),
        Command::Exam(args) => Ok(exam::run(args, &cli.global, &mut stdout())?),
        Command::Top(args) => Ok(top::run(args, &cli.global, &mut stdout())?),
        Command::Gather(args) => Ok(gather::run(args, &cli.global, &mut stdout())?),
        Command::Bench(args) => Ok(bench::run(args, &cli.global, &mut stdout())?),
        Command::Preferences(command) => Ok(preferences::run(command, &cli.global, &mut stdout())?),
        Command::Keys(command) => Ok(keys::run(command, &cli.global, &mut stdout())?),
        Command::Model(command) => Ok(model::run(command, &cli.global, &mut stdout())?),
    }
}

fn stdout() -> std::io::StdoutLock<'static> {
    std::io::stdout().lock()
}

fn serve(config: Config, logs: logs::Logs) -> anyhow::Result<u8> {
    if let Some(threads) = config.engine.threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global();
        pool.map_err(|error| anyhow::anyhow!("cannot use {threads} threads: {error}"))?;
    }
    let runtime = runtime()?;
    {
        let _within = runtime.enter();
        keep_hangups();
    }
    let server = Server::load(config, Arc::new(logs))?;
    let ended = runtime.block_on(server.run());
    // A task that blocks must not keep the process.
    runtime.shutdown_timeout(LAST_TASKS);
    match ended {
        Ok(()) => Ok(EXIT_OK),
        Err(error) => {
            eprintln!("error: {error}");
            if matches!(error, ServerError::Stuck(_)) {
                std::process::exit(EXIT_STUCK);
            }
            Ok(EXIT_FAILED)
        }
    }
}

fn gateway(config: Config) -> anyhow::Result<u8> {
    let gateway = GatewayServer::load(config)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(gateway.run());
    runtime.shutdown_timeout(LAST_TASKS);
    match ended {
        Ok(()) => Ok(EXIT_OK),
        Err(error) => {
            eprintln!("error: {error}");
            Ok(EXIT_FAILED)
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let build = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
    };
    // Tokio panics where the system refuses it a thread.
    let refused = "the system refuses the threads that serve requests: raise its limit (ulimit -u, \
                   TasksMax=, pids.max)";
    std::panic::catch_unwind(build).unwrap_or_else(|_| Err(std::io::Error::other(refused)))
}
