//! A realignment that ends the process, for want of memory most often, is not started a third time.

use super::Control;
use super::context::Context;
use super::error::BeginError;
use crate::state::{Deaths, RealignmentRow};
use realign_core::Trigger;

/// Deaths in one stage after which a realignment does not start by itself.
const MAX_DEATHS: u64 = 2;

/// Whether a realignment to these inputs may begin; not by itself if its process died too often in
/// the same stage. An operator's request and other policies begin anew.
///
/// # Errors
/// [`BeginError::Died`], or the database's.
pub(super) fn check(
    context: &Context,
    (inputs_hash, trigger): (&str, Trigger),
    unfinished: Option<&RealignmentRow>,
) -> Result<(), BeginError> {
    let db = &context.db;
    if let Some(row) = unfinished {
        db.count_death(inputs_hash, (row.stage, row.progress))?;
    }
    match trigger {
        Trigger::Operator | Trigger::Policy | Trigger::Data => {
            return Ok(db.forget_deaths(inputs_hash)?);
        }
        Trigger::Start | Trigger::Drift => {}
    }
    let deaths = db.deaths(inputs_hash)?;
    let Some(deaths) = deaths.filter(|deaths| deaths.count >= MAX_DEATHS) else {
        return Ok(());
    };
    Err(BeginError::Died(reason(context, &deaths)))
}

fn reason(context: &Context, deaths: &Deaths) -> String {
    let remedy = context.loaded.backend.headroom();
    let remedy = remedy.map_or("free memory", |room| room.remedy());
    let room = match deaths.room.as_str() {
        "" => String::new(),
        room => format!(" (when it last began, {room})"),
    };
    format!(
        "the process ended {} times in stage {} of this realignment{room}, so it is not started \
         again by itself: lower train.max_pairs, train.max_pair_tokens or train.rank, or {remedy}, \
         then start it with POST /admin/v1/realignments",
        deaths.count, deaths.stage
    )
}

/// Runs an attempt and notes that it ended, however it did: what stays open is a death.
pub(super) fn attempt<T>(context: &Context, inputs_hash: &str, run: impl FnOnce() -> T) -> T {
    let room = context.loaded.backend.headroom();
    let room = room.map(|room| room.to_string()).unwrap_or_default();
    context.log(context.db.open_attempt(inputs_hash, &room));
    let ended = run();
    context.log(context.db.close_attempts(Some(inputs_hash)));
    ended
}

impl Control {
    /// The process was told to end: that is not a death, even if it does not wait for what runs.
    pub(super) fn close_attempts(&self) {
        self.context.log(self.context.db.close_attempts(None));
    }
}
