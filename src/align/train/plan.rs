//! The batches of every training step. Pure.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::examples::TrainExample;
use super::recipe::Recipe;
use realign_core::Category;

/// The example indices of every optimiser step, batch by batch: each epoch shuffles each category
/// with its own seed, then deals every category evenly over the batches. At most
/// `recipe.max_steps` steps.
pub fn plan(examples: &[TrainExample], recipe: &Recipe) -> Vec<Vec<Vec<usize>>> {
    let categories = Category::ALL.map(|category| {
        (0..examples.len())
            .filter(|&i| examples[i].category == category)
            .collect::<Vec<usize>>()
    });
    let per_epoch = examples.len().div_ceil(recipe.pairs_per_step.max(1));
    let epochs = epochs(examples.len(), recipe);
    let mut batches: Vec<Vec<usize>> = Vec::with_capacity(per_epoch * epochs);
    for epoch in 0..epochs {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed.wrapping_add(1 + epoch as u64));
        let shuffled: Vec<Vec<usize>> = categories
            .iter()
            .map(|indices| {
                let mut indices = indices.clone();
                indices.shuffle(&mut rng);
                indices
            })
            .collect();
        for batch in 0..per_epoch {
            let share =
                |c: &Vec<usize>| batch * c.len() / per_epoch..(batch + 1) * c.len() / per_epoch;
            let dealt = shuffled.iter().flat_map(|c| c[share(c)].iter().copied());
            batches.push(dealt.collect());
        }
    }
    batches.retain(|batch| !batch.is_empty());
    let steps = batches.chunks(recipe.accumulation.max(1));
    let mut plan: Vec<Vec<Vec<usize>>> = steps.map(<[_]>::to_vec).collect();
    if recipe.max_steps > 0 {
        plan.truncate(recipe.max_steps);
    }
    plan
}

/// Maximum number of steps of a run over `pairs` pairs: the number of steps in its [`plan`].
pub fn steps(pairs: usize, recipe: &Recipe) -> usize {
    let batches = pairs.div_ceil(recipe.pairs_per_step.max(1)) * epochs(pairs, recipe);
    let steps = batches.div_ceil(recipe.accumulation.max(1));
    match recipe.max_steps {
        0 => steps,
        max => steps.min(max),
    }
}

/// Passes over the pairs: as many as the recipe has, or as its least number of steps takes.
fn epochs(pairs: usize, recipe: &Recipe) -> usize {
    let batches = pairs.div_ceil(recipe.pairs_per_step.max(1)).max(1);
    let wanted = recipe.min_steps * recipe.accumulation.max(1);
    recipe.epochs.max(wanted.div_ceil(batches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_model::packing::Example;

    fn examples(count: usize) -> Vec<TrainExample> {
        let example = |index: usize| TrainExample {
            id: index.to_string(),
            category: Category::ALL[index % 3],
            example: Example::new(vec![1], vec![vec![2]]),
            weight: 1.0,
            reference: [0.0; 2],
            reference_hidden: None,
        };
        (0..count).map(example).collect()
    }

    #[test]
    fn every_pair_is_seen_once_an_epoch_and_categories_are_spread() {
        let recipe = Recipe {
            epochs: 2,
            min_steps: 0,
            ..Recipe::default()
        };
        let examples = examples(36);
        let plan = plan(&examples, &recipe);
        assert_eq!(plan.len(), 12);
        let mut seen: Vec<usize> = plan[..6].iter().flatten().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..36).collect::<Vec<_>>());
        for batch in plan.iter().flatten() {
            for category in Category::ALL {
                let of = batch.iter().filter(|&&i| examples[i].category == category);
                assert_eq!(of.count(), 2);
            }
        }
        assert_ne!(plan[..6], plan[6..], "each epoch has its own order");
    }

    #[test]
    fn steps_count_accumulation_epochs_and_the_bound() {
        for (count, accumulation, epochs, max_steps) in [
            (25, 1, 1, 0),
            (25, 2, 3, 0),
            (7, 4, 1, 0),
            (60, 2, 2, 3),
            (1, 1, 1, 9),
            (10, 1, 1, 0),
        ] {
            let recipe = Recipe {
                accumulation,
                epochs,
                max_steps,
                ..Recipe::default()
            };
            let plan = plan(&examples(count), &recipe);
            assert_eq!(plan.len(), steps(count, &recipe), "{count} pairs");
            assert!(plan.iter().all(|step| step.len() <= accumulation));
        }
    }
}
