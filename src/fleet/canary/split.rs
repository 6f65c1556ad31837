//! Which requests get the next generation.

/// All requests, in the parts that shares are counted in.
pub const WHOLE: u16 = 10_000;

/// What is decided about at once: all requests of one key, or a request without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    hash: u64,
    is_key: bool,
}

impl Unit {
    /// All requests with this key.
    pub fn of_key(key: &str) -> Self {
        Self {
            hash: fnv(key),
            is_key: true,
        }
    }

    /// The n-th request, which has no key.
    pub fn of_request(n: u64) -> Self {
        Self {
            hash: mix(n),
            is_key: false,
        }
    }

    /// What stands for the key, if there is one.
    pub fn key(self) -> Option<u64> {
        self.is_key.then_some(self.hash)
    }
}

/// Whether a unit is within a share of a generation's canary. One that is within a share is within
/// every greater one. Each generation has its own first users.
pub fn takes(generation: &str, unit: Unit, share: u16) -> bool {
    mix(unit.hash ^ fnv(generation)) % u64::from(WHOLE) < u64::from(share)
}

/// FNV-1a. The same on every machine and in every release: a gateway that is restarted, or replaced by
/// a newer one, decides as before.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The last step of MurmurHash3, which spreads every bit over all.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_that_share_and_only_grows() {
        let shares = [1, 100, 500, 5000, 9999];
        for keyed in [true, false] {
            let unit = |n: u64| match keyed {
                true => Unit::of_key(&format!("user-{n}")),
                false => Unit::of_request(n),
            };
            for share in shares {
                let count = (0..100_000)
                    .filter(|n| takes("0123456789ab", unit(*n), share))
                    .count();
                let wanted = f64::from(share) * 10.0;
                assert!(
                    (count as f64 - wanted).abs() < 5.0 * wanted.sqrt() + 5.0,
                    "{share}: {count}"
                );
            }
            for n in 0..1000 {
                let taken = shares.map(|share| takes("0123456789ab", unit(n), share));
                assert!(taken.is_sorted(), "{taken:?}");
            }
        }
        // The first users of one generation are not those of the next.
        let both = (0..100_000).filter(|n| {
            let unit = Unit::of_key(&format!("user-{n}"));
            takes("0123456789ab", unit, 500) && takes("0123456789ac", unit, 500)
        });
        assert!((150..350).contains(&both.count()));
    }

    #[test]
    fn the_hash_stays_what_it_is() {
        assert_eq!(Unit::of_key("a").hash, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
    }
}
