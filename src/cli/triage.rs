//! `realign triage`: how the preference data fits the policies. Nothing is trained. Nothing is written, but the
//! verdicts of a shard, and what is merged into the state database.

mod flips;
mod merge;
mod part;
mod report;
mod stream;
mod verdicts;

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::progress::Progress;
use super::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, require};
use realign_align::oracle::{Prepared, RuleOracle, prepare_trusted};
use realign_align::policy::PolicySet;
use realign_align::preferences::{Dataset, Pair};
use realign_align::triage::{Shard, Triage, triage_cached, triage_in_parts};
use realign_server::config::Config;
use realign_server::state::StateDb;

use merge::Merged;
use part::Part;
use verdicts::JudgedBy;

pub use flips::{Flip, Flips};
pub use merge::MergeReport;
pub use part::ShardReport;
pub use report::{Conflict, Reason, RuleCount, TriageReport};
pub use stream::StreamReport;
pub(crate) use verdicts::VerdictsError;

/// Characters of a text that a line on a terminal shows; JSON has the whole text.
const SHOWN: usize = 90;

/// Flags of `triage`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  realign triage                          policies/ over preferences/
  realign triage --examples 5             with five conflicting pairs and the rules that decided
  realign triage --policies staging/ --include-dryrun --json
  realign triage --data huge.jsonl.gz     one file as a stream
  realign triage --shard 0/4 --verdicts out/   a quarter of the pairs, one of four machines; the others 1/4 to 3/4
  realign triage --merge out/             the verdicts of all of them into the state, for a realignment to use
Categories: invert (chosen violates, rejected complies), punish (both violate), retain (chosen
complies). The gap ratio is the share of pairs that are not retained.")]
pub(crate) struct TriageArgs {
    /// Conflicting pairs to show, with the rules that decided
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) examples: usize,
    /// Also judge by policies with `enforcement: dryrun`
    #[arg(long)]
    pub(crate) include_dryrun: bool,
    /// Triage this one file instead (.jsonl, .gz or .zst), in bounded memory, however large
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Judge only this part of the pairs, INDEX/COUNT with INDEX from 0. A pair's part depends on its content alone
    #[arg(long, value_name = "INDEX/COUNT", requires = "verdicts")]
    pub(crate) shard: Option<Shard>,
    /// Directory for the file of the shard's verdicts; what an earlier run of the shard wrote is replaced
    #[arg(long, value_name = "DIR", requires = "shard")]
    pub(crate) verdicts: Option<PathBuf>,
    /// Add the verdicts of all shards, files or directories, to the state database, and report on all pairs. Verdicts of other
    /// policies, another model or release are refused; merging again changes nothing
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["shard", "data"])]
    pub(crate) merge: Vec<PathBuf>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Runs `triage` and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(crate) fn run_triage(
    args: &TriageArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let config = global.resolve()?;
    let dataset = match args.data {
        Some(_) => None,
        None => Some(read_data(&config)?),
    };
    let (set, prepared) = read_set(&config, &config.paths.policies)?;
    let oracle = if args.include_dryrun {
        RuleOracle::with_dryrun(&set)
    } else {
        RuleOracle::new(&set)
    };
    let oracle = oracle.with_matchers(prepared.matchers);
    let Some(dataset) = dataset else {
        return of_file(args, global, &oracle, out);
    };
    if args.merge.is_empty() {
        of_dataset(args, global, (&oracle, dataset), out)
    } else {
        merge_shards((args, &config, global), &oracle, &dataset, out)
    }
}

/// Triages one file.
fn of_file(
    args: &TriageArgs,
    global: &GlobalArgs,
    oracle: &RuleOracle,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let file = args.data.as_deref().unwrap_or(Path::new(""));
    require(file, "a file of preference data (--data)")?;
    let part = Part::new(args.shard);
    let bar = Progress::new(global).spinner("pairs");
    let report = StreamReport::read((oracle, &part), file, |pairs| bar.inc(pairs as u64))?;
    bar.finish_and_clear();
    let (pairs, undecided, text) = (report.pairs, report.undecided, report.text());
    let Some(dir) = &args.verdicts else {
        return print(out, global.json, &report, &text);
    };
    match part.write(dir, oracle, (pairs, &report))? {
        Some(shard) => {
            print(out, global.json, &shard, &shard.text(&text))?;
            Ok(of_shard(undecided))
        }
        None => print(out, global.json, &report, &text),
    }
}

/// Triages the data that a server would load, or a shard of it.
fn of_dataset(
    args: &TriageArgs,
    global: &GlobalArgs,
    (oracle, mut dataset): (&RuleOracle, Dataset),
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let progress = Progress::new(global);
    let Some(dir) = args.verdicts.as_ref().filter(|_| args.shard.is_some()) else {
        let triage = triage_with_bar(&dataset.pairs, oracle, progress);
        let report = TriageReport::new(oracle, &dataset, &triage, args.examples);
        return print(out, global.json, &report, &triage_text(&report));
    };
    let part = Part::new(args.shard);
    dataset.pairs.retain(|pair| part.has(pair));
    let triage = part.triage(&dataset.pairs, oracle);
    let report = TriageReport::new(oracle, &dataset, &triage, args.examples);
    let text = triage_text(&report);
    let undecided = report.undecided;
    let shard = part.write(dir, oracle, (dataset.pairs.len(), report))?;
    if let Some(shard) = shard {
        print(out, global.json, &shard, &shard.text(&text))?;
    }
    Ok(of_shard(undecided))
}

/// A shard with undecided pairs has failed: whatever runs it should run it again.
fn of_shard(undecided: usize) -> u8 {
    if undecided == 0 { EXIT_OK } else { EXIT_FAILED }
}

/// Adds the verdicts of all shards to the state, and triages the data with them.
fn merge_shards(
    (args, config, global): (&TriageArgs, &Config, &GlobalArgs),
    oracle: &RuleOracle,
    dataset: &Dataset,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let merged = Merged::read(&args.merge, &JudgedBy::of(oracle))?;
    let state = StateDb::open_for_command(&config.paths.database())?;
    let new = state.add_verdicts(&merged.verdicts)?;
    let (triage, used) = triage_cached(&dataset.pairs, oracle, &state);
    let report = MergeReport {
        files: merged.files,
        shards: merged.shards,
        verdicts: merged.verdicts.len(),
        new,
        disagreements: merged.disagreements,
        used,
        triage: TriageReport::new(oracle, dataset, &triage, args.examples),
    };
    print(out, global.json, &report, &report.text())
}

/// Pairs that are judged between two updates of the bar.
const PART: usize = 256;

/// A triage with a progress bar.
pub(super) fn triage_with_bar(pairs: &[Pair], oracle: &RuleOracle, progress: Progress) -> Triage {
    let bar = progress.bar(pairs.len(), "triage");
    let triage = triage_in_parts(pairs, oracle, PART, |pairs| bar.inc(pairs as u64));
    bar.finish_and_clear();
    triage
}

/// The preference data as a server would load it.
pub(super) fn read_data(config: &Config) -> Result<Dataset, CliError> {
    require(
        &config.paths.preferences,
        "a directory of preference data (--preferences)",
    )?;
    let paths = &config.paths;
    let data = Dataset::load_dir_within(&paths.preferences, paths.max_preferences_bytes)?;
    Ok(data)
}

/// A set as a server would load it, with its rules prepared for judging. A set whose examples fail,
/// or with a rule below its minimum, is refused.
pub(super) fn read_set(config: &Config, dir: &Path) -> Result<(PolicySet, Prepared), CliError> {
    require(dir, "a directory of policies (--policies)")?;
    let set = PolicySet::load_dir(dir)?;
    let prepared = prepare_trusted(&set, &super::oracle::services(config, &set)?)?;
    Ok((set, prepared))
}

pub(super) fn print(
    out: &mut dyn Write,
    as_json: bool,
    report: &impl Serialize,
    text: &str,
) -> Result<u8, CliError> {
    if as_json {
        writeln!(out, "{}", serde_json::to_string(report)?)?
    } else {
        out.write_all(text.as_bytes())?
    }
    Ok(EXIT_OK)
}

pub(super) fn triage_text(report: &TriageReport) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_triage(&mut text, report);
    text
}

fn write_triage(text: &mut String, report: &TriageReport) -> std::fmt::Result {
    let counts = report.counts;
    writeln!(
        text,
        "{} pairs: {} invert, {} punish, {} retain; gap ratio {:.3}",
        report.pairs, counts.invert, counts.punish, counts.retain, report.gap_ratio
    )?;
    if report.duplicates > 0 {
        writeln!(text, "{} duplicate lines were merged", report.duplicates)?;
    }
    for pair in &report.contradictions {
        writeln!(text, "{} prefers what {} rejects", pair.second, pair.first)?;
    }
    if report.undecided > 0 {
        let (count, rest) = (
            report.undecided,
            "are counted as retained until a judge or the model answers",
        );
        writeln!(text, "{count} pairs could not be decided and {rest}")?;
    }
    if let Some(reached) = report
        .reached
        .filter(|r| r.probe + r.judge + r.undecided > 0)
    {
        writeln!(
            text,
            "verdicts by text {}, by probe {}, by judge {} (share {:.3}; {} calls, {} cached, {} tokens, cost {:.4})",
            reached.text,
            reached.probe,
            reached.judge,
            reached.judge_share,
            reached.judges.calls,
            reached.judges.cached,
            reached.judges.prompt_tokens + reached.judges.completion_tokens,
            reached.judges.cost
        )?;
    }
    for line in &report.skipped {
        writeln!(text, "skipped {line}")?;
    }
    let names = report.rules.iter().map(|r| r.policy.len() + r.rule.len());
    let width = names.max().unwrap_or(0) + 1;
    for rule in &report.rules {
        let name = format!("{}:{}", rule.policy, rule.rule);
        writeln!(
            text,
            "{name:width$}  {:8}  violated by {} chosen, {} rejected",
            rule.severity.as_str(),
            rule.chosen,
            rule.rejected
        )?;
    }
    report
        .examples
        .iter()
        .try_for_each(|e| write_conflict(text, e))
}

fn write_conflict(text: &mut String, conflict: &Conflict) -> std::fmt::Result {
    let category = conflict.category.as_str();
    writeln!(text, "\n{category}  {}", conflict.source)?;
    writeln!(text, "  prompt    {}", one_line(&conflict.prompt))?;
    writeln!(text, "  chosen    {}", one_line(&conflict.chosen))?;
    writeln!(text, "  rejected  {}", one_line(&conflict.rejected))?;
    for reason in &conflict.because {
        let evidence = reason.evidence.as_deref().map(one_line).unwrap_or_default();
        writeln!(
            text,
            "  {} violates {}:{}  {evidence}",
            reason.response, reason.policy, reason.rule
        )?;
    }
    Ok(())
}

/// A text on one line, cut to what a terminal shows.
pub(super) fn one_line(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match joined.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &joined[..cut]),
        None => joined,
    }
}

#[cfg(test)]
pub(crate) mod tests;
