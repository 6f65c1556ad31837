//! The report of `eval oracle` as text.

use std::fmt::{self, Write as _};

use realign_lab::evaluation::oracle::EvalReport;

/// A table with a row per method, then the methods' remarks.
pub(super) fn text(report: &EvalReport) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &EvalReport) -> fmt::Result {
    writeln!(
        text,
        "{} responses, {:.3} of them violating; {} pairs; {:.0} responses a minute read",
        report.responses, report.violating, report.pairs, report.responses_per_minute
    )?;
    writeln!(
        text,
        "method          accuracy  macro-F1 | pairs: accuracy  macro-F1  invert  punish  retain"
    )?;
    for m in &report.methods {
        let [invert, punish, retain] = m.pair_f1;
        writeln!(
            text,
            "{:14}  {:8.3}  {:8.3} | {:15.3}  {:8.3}  {invert:6.3}  {punish:6.3}  {retain:6.3}",
            m.method, m.accuracy, m.response_macro_f1, m.pair_accuracy, m.pair_macro_f1
        )?;
    }
    for m in report.methods.iter().filter(|m| !m.remark.is_empty()) {
        writeln!(text, "{}: {}", m.method, m.remark)?;
    }
    Ok(())
}
