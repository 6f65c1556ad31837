//! Which rows go through which experts, and with what weight.

/// The rows of a step, or of a packed batch, grouped by the experts that they chose. An *assignment*
/// is a row at one of its experts; those of an expert lie together, rows ascending, so that an
/// expert's weights are read once for all of its rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routing {
    /// The row of each assignment.
    pub(crate) rows: Vec<u32>,
    /// Its weight in the row's sum.
    pub(crate) weights: Vec<f32>,
    /// Experts that have assignments, ascending.
    pub(crate) groups: Vec<Group>,
    /// Scratch: the expert of each of a row's places, for all rows.
    chosen: Vec<u32>,
}

/// The assignments of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// The expert.
    pub(crate) expert: usize,
    /// Its first assignment.
    pub(crate) start: usize,
    /// Its assignments, at least one.
    pub(crate) count: usize,
}

impl Group {
    /// Its part of a matrix that has a row of `width` elements for each assignment.
    pub(crate) fn range(self, width: usize) -> std::ops::Range<usize> {
        self.start * width..(self.start + self.count) * width
    }
}

/// How a router's products become choices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// Experts there are.
    pub(crate) experts: usize,
    /// Experts that a row goes through, from 1 to all.
    pub(crate) used: usize,
    /// Whether their weights are scaled to sum to 1.
    pub(crate) normalised: bool,
}

impl Routing {
    /// Groups rows by their choices. `scores` (rows, experts) holds the router's products and becomes
    /// their softmax, row by row. A row's choice does not depend on other rows.
    pub(crate) fn choose(&mut self, choice: Choice, scores: &mut [f32]) {
        let Choice { experts, used, .. } = choice;
        self.chosen.clear();
        for row in scores.chunks_exact_mut(experts) {
            softmax(row);
            let first = self.chosen.len();
            for _ in 0..used {
                let next = likeliest(row, &self.chosen[first..]);
                self.chosen.push(next);
            }
        }
        self.group(experts, used);
        for group in &self.groups {
            for at in group.start..group.start + group.count {
                let row = self.rows[at] as usize;
                let own = &scores[row * experts..][..experts];
                let chosen = &self.chosen[row * used..][..used];
                let sum: f32 = match choice.normalised {
                    true => chosen.iter().map(|expert| own[*expert as usize]).sum(),
                    false => 1.0,
                };
                self.weights[at] = own[group.expert] / sum;
            }
        }
    }

    /// A counting sort of the choices by expert.
    fn group(&mut self, experts: usize, used: usize) {
        let mut counts = vec![0usize; experts];
        for expert in &self.chosen {
            counts[*expert as usize] += 1;
        }
        self.groups.clear();
        let mut next = vec![0usize; experts];
        let mut start = 0;
        for (expert, count) in counts.into_iter().enumerate() {
            next[expert] = start;
            if count > 0 {
                self.groups.push(Group {
                    expert,
                    start,
                    count,
                });
            }
            start += count;
        }
        self.rows.resize(start, 0);
        self.weights.resize(start, 0.0);
        for (place, expert) in self.chosen.iter().enumerate() {
            let at = &mut next[*expert as usize];
            self.rows[*at] = (place / used) as u32;
            *at += 1;
        }
    }

    /// (assignment, row, expert) of all assignments, in their order.
    pub(crate) fn assignments(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let group = |group: &Group| {
            let expert = group.expert;
            let places = group.start..group.start + group.count;
            places.map(move |at| (at, expert))
        };
        let places = self.groups.iter().flat_map(group);
        places.map(|(at, expert)| (at, self.rows[at] as usize, expert))
    }

    /// `into` (assignments, width) ← each assignment's row of `from` (rows, width).
    pub(crate) fn gather(&self, from: &[f32], width: usize, into: &mut [f32]) {
        for (row, into) in self.rows.iter().zip(into.chunks_exact_mut(width)) {
            into.copy_from_slice(&from[*row as usize * width..][..width]);
        }
    }
}

/// The likeliest expert that is not among the `taken`; the first of equal ones.
fn likeliest(row: &[f32], taken: &[u32]) -> u32 {
    let mut best: Option<usize> = None;
    for (expert, value) in row.iter().enumerate() {
        let better = best.is_none_or(|best| value.total_cmp(&row[best]).is_gt());
        if better && !taken.contains(&(expert as u32)) {
            best = Some(expert);
        }
    }
    best.unwrap_or(0) as u32
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - largest).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: Choice = Choice {
        experts: 3,
        used: 2,
        normalised: true,
    };

    #[test]
    fn rows_are_grouped_by_the_experts_they_chose() {
        let mut routing = Routing::default();
        let mut scores = [0.0, 2f32.ln(), 4f32.ln(), 1.0, 1.0, 1.0];
        routing.choose(CHOICE, &mut scores);
        assert_eq!(routing.rows, [1, 0, 1, 0]);
        let groups: Vec<_> = routing.groups.iter().map(|g| (g.expert, g.count)).collect();
        assert_eq!(groups, [(0, 1), (1, 2), (2, 1)]);
        for (got, expected) in routing.weights.iter().zip([0.5, 1.0 / 3.0, 0.5, 2.0 / 3.0]) {
            assert!((got - expected).abs() < 1e-6, "{got}");
        }
        let plain = Choice {
            normalised: false,
            ..CHOICE
        };
        let mut scores = [0.0, 2f32.ln(), 4f32.ln()];
        routing.choose(plain, &mut scores);
        assert_eq!((routing.rows.len(), routing.groups.len()), (2, 2));
        assert!((routing.weights[1] - 4.0 / 7.0).abs() < 1e-6);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn scores_that_are_no_numbers_choose_something() {
        let mut routing = Routing::default();
        routing.choose(CHOICE, &mut [f32::NAN; 6]);
        assert_eq!(routing.rows.len(), 4);
        assert!(routing.weights.iter().all(|weight| weight.is_nan()));
    }
}
