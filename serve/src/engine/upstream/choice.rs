//! In which order upstreams are asked: the first by weight, the others after it if it fails. Pure: chance comes in as numbers.

/// Indices of `weights`, each drawn among those that are left, with a chance that its weight gives it. `draw(n)` is below `n`.
pub(super) fn order(weights: &[u32], mut draw: impl FnMut(u64) -> u64) -> Vec<usize> {
    let mut left: Vec<usize> = (0..weights.len()).collect();
    let mut order = Vec::with_capacity(left.len());
    while left.len() > 1 {
        let total: u64 = left.iter().map(|&i| u64::from(weights[i])).sum();
        let mut ticket = draw(total.max(1));
        let mut at = 0;
        for (position, &i) in left.iter().enumerate() {
            let weight = u64::from(weights[i]);
            at = position;
            if ticket < weight {
                break;
            }
            ticket -= weight;
        }
        order.push(left.remove(at));
    }
    order.extend(left);
    order
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn each_ticket_belongs_to_one() {
        let weights = [1, 3, 2];
        let first: Vec<usize> = (0..6)
            .map(|ticket| order(&weights, |_| ticket)[0])
            .collect();
        assert_eq!(first, [0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn all_are_in_it_once() {
        for ticket in 0..6 {
            let mut all = order(&[1, 3, 2], |n| ticket % n);
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2]);
        }
        assert_eq!(order(&[7], |_| 0), [0]);
        assert!(order(&[], |_| 0).is_empty());
    }
}
