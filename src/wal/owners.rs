//! What each owner still needs: the reason why a segment stays.

use std::collections::BTreeMap;

use super::{Owner, Position};

/// An owner that holds a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Whose records they are.
    pub owner: Owner,
    /// The first position it may still need.
    pub position: Position,
}

/// Owners that have records they did not release. Bounded by their number; an owner that needs nothing takes no room.
#[derive(Debug, Default)]
pub(super) struct Owners {
    holdings: BTreeMap<Owner, Holding>,
}

/// Invariant: `needed <= last`.
#[derive(Debug, Clone, Copy)]
struct Holding {
    /// The first position that is needed.
    needed: Position,
    /// The last record.
    last: Position,
}

impl Owners {
    /// A record of `owner` is at `position`, beyond all others.
    pub(super) fn appended(&mut self, owner: Owner, position: Position) {
        let fresh = Holding { needed: position, last: position };
        self.holdings.entry(owner).or_insert(fresh).last = position;
    }

    pub(super) fn release(&mut self, owner: Owner, position: Position) {
        let Some(holding) = self.holdings.get_mut(&owner) else { return };
        holding.needed = holding.needed.max(position);
        if holding.needed > holding.last {
            self.holdings.remove(&owner);
        }
    }

    pub(super) fn release_all(&mut self, owner: Owner) {
        self.holdings.remove(&owner);
    }

    /// Who needs the oldest record.
    pub(super) fn oldest(&self) -> Option<Pin> {
        let pins = self.holdings.iter();
        pins.map(|(&owner, holding)| Pin { owner, position: holding.needed })
            .min_by_key(|pin| pin.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(offset: u32) -> Position {
        Position::new(1, offset)
    }

    #[test]
    fn an_owner_pins_from_its_first_record_to_its_release() {
        let mut owners = Owners::default();
        owners.appended(Owner(1), at(32));
        owners.appended(Owner(2), at(64));
        owners.appended(Owner(1), at(96));
        assert_eq!(owners.oldest(), Some(Pin { owner: Owner(1), position: at(32) }));
        owners.release(Owner(1), at(96));
        assert_eq!(owners.oldest(), Some(Pin { owner: Owner(2), position: at(64) }));
        owners.release_all(Owner(2));
        owners.release(Owner(1), at(40));
        assert_eq!(owners.oldest(), Some(Pin { owner: Owner(1), position: at(96) }));
        owners.release(Owner(1), at(104));
        assert_eq!(owners.oldest(), None);
    }

    #[test]
    fn an_owner_that_comes_back_pins_from_there() {
        let mut owners = Owners::default();
        owners.appended(Owner(1), at(32));
        owners.release_all(Owner(1));
        owners.appended(Owner(1), at(128));
        assert_eq!(owners.oldest(), Some(Pin { owner: Owner(1), position: at(128) }));
    }
}
