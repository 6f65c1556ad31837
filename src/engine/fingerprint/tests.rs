use super::*;

#[test]
fn what_another_program_wrote_is_refused_before_anything_is_computed() {
    let good = Fingerprint {
        prompt: vec![3, 4],
        top: vec![(1, -0.5)],
    };
    assert_eq!(good.check(5), Ok(()));
    let with = |prompt: &[u32], top: &[(u32, f32)]| Fingerprint {
        prompt: prompt.to_vec(),
        top: top.to_vec(),
    };
    for (bad, why) in [
        (with(&[], &good.top), "1 to 256"),
        (with(&[1; 257], &good.top), "1 to 256"),
        (with(&[5], &good.top), "does not have"),
        (with(&[u32::MAX], &good.top), "does not have"),
        (with(&[1], &[]), "no tokens"),
        (with(&[1], &[(1, f32::NAN)]), "not finite"),
    ] {
        let error = bad.check(5).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn tokens_are_compared_by_their_ids() {
    let here = [(7, -0.5), (3, -1.5), (9, -4.0)];
    assert_eq!(difference(&here, &here), 0.0);
    assert_eq!(difference(&[(3, -0.5), (7, -1.5)], &here), 1.0);
    // One that is not among the most likely is at most as likely as the last of them.
    assert_eq!(difference(&[(5, -0.5)], &here), 3.5);
    assert_eq!(difference(&[(7, -0.5)], &[]), f32::INFINITY);
    assert_eq!(difference(&[(7, -0.5)], &[(7, f32::NAN)]), f32::INFINITY);
}
