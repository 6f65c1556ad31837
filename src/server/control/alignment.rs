//! Whether what serves is aligned: what the exam measured, and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::context::Context;
use crate::api::answers::admin::Alignment;
use crate::state::Pin;
use crate::telemetry::Event;
use crate::telemetry::event::{ExamRole, Examined};
use realign_align::exam::{Report, Standing};
use realign_core::AlignmentState;
use realign_engine::adapter::generation::GenerationId;

/// Reports that are kept, by generation.
const KEPT: usize = 16;

/// What is known about generations under the active policies.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Hash of the exam that the reports belong to.
    exam: Option<String>,
    /// Reports by generation, under that exam.
    reports: HashMap<String, Arc<Report>>,
    /// The last candidate's report.
    candidate: Option<Arc<Report>>,
    /// Whether a realignment runs.
    realigning: bool,
    /// Whether an exam is being sat.
    examining: bool,
    /// Why the last exam was not sat to its end.
    failure: Option<String>,
    /// Why a realignment that is due does not begin.
    blocked: Option<String>,
}

impl Context {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was measured under other policies.
    pub(super) fn clear_board(&self) {
        let mut board = self.board();
        *board = Board {
            realigning: board.realigning,
            examining: board.examining,
            blocked: board.blocked.take(),
            ..Board::default()
        };
    }

    /// Why the generation that should serve does not, if so.
    pub(crate) fn fallback(&self) -> Option<String> {
        self.pointer.fallback()
    }

    /// Says why a realignment that is due does not begin.
    pub(super) fn set_blocked(&self, why: Option<String>) {
        let mut board = self.board();
        if let Some(why) = why
            .as_ref()
            .filter(|why| board.blocked.as_ref() != Some(why))
        {
            tracing::error!("{why}");
        }
        board.blocked = why;
    }

    /// What an operator pinned, in words, if it does not serve.
    pub(crate) fn lost_pin(&self) -> Option<String> {
        self.pointer.lost_pin()
    }

    /// What an operator pinned, if anything.
    pub(crate) fn pinned(&self) -> Option<Pin> {
        self.pointer.pinned()
    }

    pub(super) fn set_realigning(&self, realigning: bool) {
        self.board().realigning = realigning;
    }

    pub(super) fn set_examining(&self, examining: bool) {
        self.board().examining = examining;
    }

    /// Whether an exam is being sat by itself.
    pub(crate) fn is_examining(&self) -> bool {
        self.board().examining
    }

    /// Keeps a report; with a role, it is measured as well.
    pub(super) fn keep_report(&self, role: Option<ExamRole>, report: &Arc<Report>) {
        let mut board = self.board();
        if board.exam.as_ref() != Some(&report.exam) {
            board.reports.clear();
            board.exam = Some(report.exam.clone());
        }
        if board.reports.len() >= KEPT {
            board.reports.clear();
        }
        let generation = report.generation.clone();
        board.reports.insert(generation, report.clone());
        if role == Some(ExamRole::Candidate) {
            board.candidate = Some(report.clone());
        }
        board.failure = None;
        drop(board);
        if let Some(role) = role {
            self.emit(Event::Examined(Examined::new(role, report)));
        }
    }

    /// Measures a generation that serves from now on by what it did in the exam, if it sat it.
    pub(super) fn measure_serving(&self, generation: &GenerationId) {
        if let Some(report) = self.report_of(generation) {
            self.emit(Event::Examined(Examined::new(ExamRole::Current, &report)));
        }
    }

    /// Keeps why an exam was not sat to its end.
    pub(super) fn keep_failure(&self, why: String) {
        tracing::warn!(why, "the exam could not be sat");
        self.board().failure = Some(why);
    }

    /// The report of what serves, if it sat the exam of the active policies.
    pub(crate) fn serving_report(&self) -> Option<Arc<Report>> {
        let serving = self.registry.lease_current().id.clone();
        self.report_of(&serving)
    }

    /// Whether what serves has no result for a reason that may pass: the exam was not sat to its
    /// end, or answers could not be judged.
    pub(super) fn exam_was_hindered(&self) -> bool {
        if self.board().failure.is_some() {
            return true;
        }
        let report = self.serving_report();
        report.is_some_and(|report| {
            let open = report.rules.iter().any(|rule| rule.undecided > 0);
            open && report.standing() == Standing::Unknown
        })
    }

    pub(super) fn report_of(&self, generation: &GenerationId) -> Option<Arc<Report>> {
        self.board().reports.get(&generation.0).cloned()
    }

    /// The last candidate's report.
    pub(crate) fn candidate_report(&self) -> Option<Arc<Report>> {
        self.board().candidate.clone()
    }

    /// Whether what serves is aligned, and why. Reads nothing from disk.
    pub(crate) fn alignment(&self) -> Alignment {
        let report = self.serving_report();
        let board = self.board();
        let (realigning, examining) = (board.realigning, board.examining);
        let failure = board.failure.clone();
        let blocked = board.blocked.clone();
        drop(board);
        let (fallback, pinned) = (self.fallback(), self.pinned());
        let lost = self.pointer.lost_pin();
        let active = self.active();
        let governed = active.set.policies().iter().any(|p| p.is_enforced());
        let (state, reasons) = match report {
            _ if !active.loaded => {
                let why = match active.refused {
                    Some(refused) => format!("no policies are active: {refused}"),
                    None => "the policies have not been read yet".into(),
                };
                (AlignmentState::Unknown, vec![why])
            }
            _ if !governed && fallback.is_none() && lost.is_none() => {
                (AlignmentState::Aligned, Vec::new())
            }
            _ if !governed => (AlignmentState::Unknown, Vec::new()),
            Some(report) => measured(&report),
            None => {
                let why = match failure {
                    Some(why) => why,
                    None if examining => "what serves is sitting the exam".into(),
                    None => "what serves has not sat the exam yet".into(),
                };
                (AlignmentState::Unknown, vec![why])
            }
        };
        let state = match state {
            AlignmentState::Aligned => state,
            _ if realigning => AlignmentState::Realigning,
            _ => state,
        };
        let mut reasons = reasons;
        if state != AlignmentState::Aligned {
            reasons.extend(fallback.map(|why| format!("{why}; the base model serves")));
            reasons.extend(blocked);
            let keeps = pinned.as_ref().filter(|_| lost.is_none());
            reasons.extend(keeps.map(|pin| {
                format!(
                    "generation {} is pinned by an operator, so realignments do not replace it; \
                     `realign adapters unpin` releases it",
                    pin.generation
                )
            }));
        }
        // Said whatever the exam says about what serves.
        reasons.extend(lost);
        reasons.extend(self.pointer.trouble());
        Alignment {
            state,
            reasons,
            pinned,
        }
    }
}

/// What a report says about the generation that sat the exam.
fn measured(report: &Report) -> (AlignmentState, Vec<String>) {
    match report.standing() {
        Standing::Meets => (AlignmentState::Aligned, Vec::new()),
        Standing::Misses => {
            let missed = report.missed().map(|rule| rule.describe());
            (AlignmentState::Misaligned, missed.collect())
        }
        Standing::Unknown => (AlignmentState::Unknown, report.missing.clone()),
    }
}
