//! Carries out what operators order.

use super::Core;
use super::durable::{Cause, Release, Stage};
use super::history::{Command, Entry, Hold, Order};

impl Core {
    /// Whether an order can be carried out now.
    ///
    /// # Errors
    /// Why not.
    pub fn may(&self, order: &Order) -> Result<(), String> {
        let durable = &self.durable;
        let about = match order.command {
            Command::Pause => match &durable.paused {
                Some(hold) => {
                    return Err(format!(
                        "rollouts are paused already, by {}: {}",
                        hold.by, hold.why
                    ));
                }
                None => durable.rollout.as_ref().map(|r| &r.to),
            },
            Command::Resume => match durable.paused {
                None => return Err("rollouts are not paused".into()),
                Some(_) => durable.rollout.as_ref().map(|r| &r.to),
            },
            Command::Abort => Some(self.may_abort()?),
            Command::Rollout => Some(self.may_start()?),
        };
        match (&order.generation, about) {
            (Some(meant), Some(about)) if *meant != about.generation => Err(format!(
                "generation {meant} was meant, and it would be {}; look at `realign fleet status`",
                about.generation
            )),
            (Some(meant), None) => Err(format!(
                "generation {meant} was meant, and there is no rollout under way"
            )),
            _ => Ok(()),
        }
    }

    fn may_abort(&self) -> Result<&Release, String> {
        match &self.durable.rollout {
            None => Err("there is nothing to abort: no rollout is under way".into()),
            Some(rollout) if rollout.stage >= Stage::Drain => Err(format!(
                "generation {} has switched already and serves; activate the one before on the controller to \
                 go back",
                rollout.to.generation
            )),
            Some(rollout) => Ok(&rollout.to),
        }
    }

    fn may_start(&self) -> Result<&Release, String> {
        let durable = &self.durable;
        if let Some(hold) = &durable.paused {
            return Err(format!(
                "rollouts are paused by {}: {}; resume them first",
                hold.by, hold.why
            ));
        }
        if let Some(rollout) = durable.rollout.as_ref().filter(|r| r.stage < Stage::Drain) {
            return Err(format!(
                "a rollout of generation {} is under way",
                rollout.to.generation
            ));
        }
        match &durable.refused {
            Some(refused) => Ok(&refused.release),
            None => {
                Err("nothing was given up: what should serve serves, or is being rolled out".into())
            }
        }
    }

    pub(super) fn order(&mut self, now: u64, order: Order) {
        self.clock = order.at;
        if self.may(&order).is_err() {
            return;
        }
        let durable = &mut self.durable;
        let mut about = durable.rollout.as_ref().map(|r| r.to.clone());
        match order.command {
            Command::Pause => {
                durable.paused = Some(Hold {
                    by: order.by.clone(),
                    why: order.why.clone(),
                    at: order.at,
                });
            }
            Command::Resume => {
                durable.paused = None;
                self.ignored = None;
                if let Some(trial) = &mut self.trial {
                    trial.restart_clock(now);
                }
                if let Some(release) = self.waiting.take() {
                    self.start(release.clone());
                    about = Some(release);
                }
            }
            Command::Abort => {
                let why = format!("aborted by {}: {}", order.by, order.why);
                self.give_up(why, Cause::Aborted, "abort");
            }
            Command::Rollout => {
                if let Some(refused) = durable.refused.take() {
                    about = Some(refused.release.clone());
                    self.start(refused.release);
                }
            }
        }
        self.durable.remember(Entry {
            at: order.at,
            by: order.by,
            act: order.command.as_str().into(),
            release: about,
            why: order.why,
        });
    }

    /// Takes note of what was done without an order.
    pub(super) fn note(&mut self, act: &str, release: Option<&Release>, why: &str) {
        self.durable.remember(Entry {
            at: self.clock,
            by: "gateway".into(),
            act: act.into(),
            release: release.cloned(),
            why: why.into(),
        });
    }
}
