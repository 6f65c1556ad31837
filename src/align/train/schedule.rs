//! Learning-rate schedules.

use super::choices::Schedule;
use super::recipe::Recipe;

/// The learning rate of a step (from 0) out of `total`: linear warm-up over the first
/// `warmup_ratio` of the steps, then the recipe's schedule.
pub(crate) fn learning_rate(recipe: &Recipe, step: usize, total: usize) -> f64 {
    let peak = recipe.learning_rate;
    let warmup = (recipe.warmup_ratio * total as f64).ceil().max(0.0);
    let step = step as f64;
    if step < warmup {
        return peak * (step + 1.0) / warmup;
    }
    let progress = (step - warmup) / (total as f64 - warmup).max(1.0);
    match recipe.schedule {
        Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        Schedule::Linear => peak * (1.0 - progress),
        Schedule::Constant => peak,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule) -> Vec<f64> {
        let recipe = Recipe {
            learning_rate: 1.0,
            warmup_ratio: 0.1,
            schedule,
            ..Recipe::default()
        };
        (0..100)
            .map(|step| learning_rate(&recipe, step, 100))
            .collect()
    }

    #[test]
    fn every_schedule_warms_up_and_two_fall_to_zero() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant] {
            let rates = rates(schedule);
            assert!((rates[0] - 0.1).abs() < 1e-12, "{schedule:?}");
            assert!((rates[9] - 1.0).abs() < 1e-12 && (rates[10] - 1.0).abs() < 1e-12);
            let falls = rates.windows(2).skip(10).all(|w| w[1] < w[0]);
            assert_eq!(falls, schedule != Schedule::Constant, "{schedule:?}");
        }
        assert!(rates(Schedule::Cosine)[99] < 1e-3);
        assert!((rates(Schedule::Linear)[99] - 1.0 / 90.0).abs() < 1e-12);
        assert_eq!(rates(Schedule::Constant)[99], 1.0);
    }

    #[test]
    fn a_run_of_one_step_takes_it_at_the_peak() {
        let recipe = Recipe {
            warmup_ratio: 0.0,
            ..Recipe::default()
        };
        assert_eq!(learning_rate(&recipe, 0, 1), recipe.learning_rate);
    }
}
