use super::*;
use crate::oracle::features::{FeatureError, FeatureSource};

/// Features that show the verdict in one layer only: the response's length, and a parity.
#[derive(Debug)]
struct Stand;

impl FeatureSource for Stand {
    fn base(&self) -> &str {
        "stand-in"
    }

    fn features(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError> {
        let of = |e: &Exchange<'_>| {
            let noise = e.prompt.bytes().map(u32::from).sum::<u32>() as f32 % 7.0;
            let layer = |signal: f32| vec![noise, 1.0, signal, noise * 0.5];
            vec![layer(noise), layer(e.response.len() as f32)]
        };
        Ok(exchanges.iter().map(of).collect())
    }
}

fn rows(count: usize) -> Vec<Labelled> {
    let row = |i: usize| Labelled {
        prompt: format!("question {}", i / 2),
        response: "word ".repeat(if i.is_multiple_of(2) { 2 } else { 12 } + i % 3),
        violates: !i.is_multiple_of(2),
    };
    (0..count).map(row).collect()
}

fn fit(rows: Vec<Labelled>) -> Result<FittedProbe, ProbeError> {
    FittedProbe::fit(&ProbeSpec::new(rows, true, None), &Stand)
}

#[test]
fn what_one_layer_shows_is_found() {
    let probe = fit(rows(60)).unwrap();
    for row in rows(60) {
        let held = probe.left_out(&row.exchange()).unwrap();
        assert_eq!(held.holds(), row.violates, "{held:?}");
    }
    let unseen = Exchange {
        prompt: "another",
        response: &"word ".repeat(13),
        labels: &[],
    };
    assert!(probe.left_out(&unseen).is_none());
    let features = Stand.features(&[unseen]).unwrap();
    assert!(probe.score(&unseen, &features[0]).holds());
}

#[test]
fn equal_rows_give_equal_bits_in_any_order() {
    let first = fit(rows(60)).unwrap();
    let mut turned = rows(60);
    turned.reverse();
    let second = fit(turned).unwrap();
    assert_eq!(first.blend, second.blend);
    assert_ne!(
        first.key, second.key,
        "the key covers the file as it stands"
    );
    let dir = tempfile::tempdir().unwrap();
    first.store(dir.path());
    assert_eq!(FittedProbe::load(dir.path(), &first.key), Some(first));
    assert_eq!(FittedProbe::load(dir.path(), &second.key), None);
}

#[test]
fn too_few_examples_are_refused_with_what_is_missing() {
    let error = fit(rows(6)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("add 5 violating, 5 complying and 2 prompts"),
        "{text}"
    );
    let mut contradictory = rows(60);
    contradictory.push(Labelled {
        violates: true,
        ..rows(1).remove(0)
    });
    let error = fit(contradictory).unwrap_err().to_string();
    assert!(
        error.contains("labelled `violates` and `complies`"),
        "{error}"
    );
}

#[test]
fn folds_keep_prompts_together_and_hold_both_verdicts() {
    let rows = rows(60);
    let borrowed: Vec<&Labelled> = rows.iter().collect();
    let fold_of = folds(&borrowed);
    for i in 0..60 {
        assert_eq!(fold_of[i], fold_of[i / 2 * 2]);
    }
    for fold in 0..FOLDS {
        let inside = (0..60).filter(|&i| fold_of[i] == fold);
        let violating = inside.clone().filter(|&i| rows[i].violates).count();
        assert!(violating >= 4 && inside.count() >= 8);
    }
}
