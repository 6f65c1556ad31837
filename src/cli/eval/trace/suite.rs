//! Runs the whole comparison: plans the cells, skips finished ones, and writes the report after
//! each.

use std::io::Write;
use std::time::Instant;

use serde_json::json;

use super::TraceArgs;
use super::inputs::{About, Inputs};
use super::runner::Runner;
use super::store::{CellStore, write};
use crate::progress::Progress;
use crate::{CliError, EXIT_FAILED, EXIT_OK, GlobalArgs};
use realign_lab::evaluation::{Cell, Report, Share, Variant, plots, table};

pub(super) fn run(
    args: &TraceArgs,
    global: &GlobalArgs,
    inputs: &Inputs,
    variants: &[Variant],
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let store = CellStore::open(&args.out, args.resume)?;
    let plan = plan(variants, inputs.recipe.seed, args.seeds);
    let mut cells = Vec::with_capacity(plan.len());
    let mut left = Vec::new();
    for (variant, seed) in plan {
        match store.get(variant, seed, &inputs.fingerprint(variant, seed))? {
            Some(cell) => cells.push(cell),
            None => left.push((variant, seed)),
        }
    }
    let say = |text: &str| {
        if !global.quiet {
            eprintln!("{text}");
        }
    };
    say(&introduction(&inputs.about, cells.len(), left.len()));
    let started = Instant::now();
    if !left.is_empty() {
        let mut runner = Runner::new(inputs, Progress::new(global))?;
        for (done, (variant, seed)) in left.iter().enumerate() {
            let cell = runner.run(*variant, *seed)?;
            store.put(*variant, &cell)?;
            cells.push(cell);
            save(args, inputs, &cells)?;
            let spent = started.elapsed().as_secs_f64();
            let cell = &cells[cells.len() - 1];
            let remaining = estimate(&cells, left.len() - done - 1);
            let position = Position {
                done: done + 1,
                total: left.len(),
            };
            say(&line(cell, position, spent, remaining));
        }
    }
    let (report, text) = save(args, inputs, &cells)?;
    if global.json {
        writeln!(out, "{}", json(inputs, &cells, &report))?
    } else {
        write!(out, "{text}")?
    }
    let failed = cells.iter().any(|cell| cell.failure.is_some());
    Ok(if failed { EXIT_FAILED } else { EXIT_OK })
}

/// All cells in the order in which they run: seed by seed, and within a seed variants with the same
/// labels next to each other. The base runs once.
pub(super) fn plan(variants: &[Variant], first: u64, seeds: u64) -> Vec<(Variant, u64)> {
    let mut trained: Vec<Variant> = variants.iter().copied().filter(|v| v.trains()).collect();
    trained.sort_by_key(|variant| variant.labels());
    let mut plan = vec![(Variant::Base, first)];
    for seed in first..first + seeds {
        plan.extend(trained.iter().map(|variant| (*variant, seed)));
    }
    plan
}

/// Estimated seconds for `left` further cells, from the mean of the cells that trained.
pub(super) fn estimate(cells: &[Cell], left: usize) -> Option<f64> {
    let spent: Vec<f64> = cells
        .iter()
        .filter(|cell| cell.training.is_some())
        .map(|cell| cell.seconds.spent)
        .collect();
    let mean = spent.iter().sum::<f64>() / spent.len() as f64;
    (!spent.is_empty()).then_some(mean * left as f64)
}

fn introduction(about: &About, known: usize, left: usize) -> String {
    let (train, held) = (about.train, about.held_out);
    format!(
        "{} on {}: {} training pairs ({} invert, {} punish, {} retain; {} too long), held-out \
         prompts: {} invert, {} punish, {} retain\n{}\n{left} cells to run, {known} known",
        about.model,
        about.data,
        train.total(),
        train.invert,
        train.punish,
        train.retain,
        about.skipped_pairs,
        held.invert,
        held.punish,
        held.retain,
        reliability(about),
    )
}

/// A sentence on how far the figures of fresh answers can be trusted.
fn reliability(about: &About) -> String {
    match about.judge {
        Some(judge) => format!(
            "Fresh answers are judged by {}, which agrees with the data's human labels on {:.1} % of \
             {} responses (macro-F1 {:.3}): differences of that order mean little.",
            about.judged_by,
            100.0 * judge.accuracy,
            judge.responses,
            judge.macro_f1
        ),
        None => format!(
            "Fresh answers are judged by {}, the rules that triaged the data: agreement is agreement \
             with them, and no label of a person stands behind it.",
            about.judged_by
        ),
    }
}

/// How many of the cells of this run are finished.
#[derive(Clone, Copy)]
struct Position {
    done: usize,
    total: usize,
}

/// A finished cell in a line. `spent` and `left` are seconds of the whole run.
fn line(cell: &Cell, position: Position, spent: f64, left: Option<f64>) -> String {
    let Position { done, total } = position;
    let result = match (&cell.measured, &cell.failure) {
        (Some(m), _) => {
            let shares = [
                ("agreement", m.agreement),
                ("invert", m.invert),
                ("punish", m.punish),
                ("retain", m.retain),
                ("over-refusal", m.over_refusal),
            ];
            let shown: Vec<String> = shares.map(|(name, s)| share(name, s)).to_vec();
            let perplexity = m
                .perplexity
                .map_or(String::new(), |p| format!(", perplexity {p:.2}"));
            format!("{}{perplexity}", shown.join(", "))
        }
        (None, why) => format!("failed: {}", why.as_deref().unwrap_or("no reason")),
    };
    let left = left.map_or("unknown".to_owned(), |s| format!("{s:.0} s"));
    format!(
        "{} seed {}: {result}; {:.0} s; {done} of {total}, {spent:.0} s so far, {left} left",
        cell.variant, cell.seed, cell.seconds.spent
    )
}

fn share(name: &str, share: Share) -> String {
    format!("{name} {}/{}", share.count, share.of)
}

/// Writes the report of the cells so far, so that a stopped run leaves one.
fn save(args: &TraceArgs, inputs: &Inputs, cells: &[Cell]) -> Result<(Report, String), CliError> {
    let report = Report::of(cells);
    let text = text(&inputs.about, cells, &report);
    write(&args.out.join("report.md"), text.as_bytes())?;
    let value = json(inputs, cells, &report);
    write(
        &args.out.join("report.json"),
        &serde_json::to_vec_pretty(&value)?,
    )?;
    for (name, svg) in plots::all(&report) {
        write(&args.out.join(name), svg.as_bytes())?;
    }
    Ok((report, text))
}

fn json(inputs: &Inputs, cells: &[Cell], report: &Report) -> serde_json::Value {
    json!({
        "inputs": inputs.about,
        "reliability": reliability(&inputs.about),
        "summary": report.rows,
        "cells": cells,
    })
}

fn text(about: &About, cells: &[Cell], report: &Report) -> String {
    let spent: f64 = cells.iter().map(|cell| cell.seconds.spent).sum();
    let (train, held) = (about.train, about.held_out);
    format!(
        "# TRACE, its ablations and the baselines: {} on {}\n\n\
         {} training pairs ({} invert, {} punish, {} retain; {} left out as too long), triaged by {}. \
         Held-out prompts: {} invert, {} punish, {} retain. Agreement is the share of compliant fresh \
         greedy answers to all of them; the next three columns are the same by category. Perplexity \
         is over {} tokens, accuracy and margins over {} multiple-choice items; margin changes are \
         paired with the base item by item, their intervals a bootstrap over items. Retained NLL is \
         the change per token on the preferred responses of held-out RETAIN pairs. ± is one standard \
         deviation over seeds. {} cells, {spent:.0} s in all.\n\n{}\n\n{}",
        about.model,
        about.data,
        train.total(),
        train.invert,
        train.punish,
        train.retain,
        about.skipped_pairs,
        about.triaged_by,
        held.invert,
        held.punish,
        held.retain,
        about.perplexity_tokens,
        about.items,
        cells.len(),
        reliability(about),
        table::markdown(report)
    )
}
