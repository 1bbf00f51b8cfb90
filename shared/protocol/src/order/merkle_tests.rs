use super::*;
use proptest::{collection::btree_set, prelude::*};

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

const NUMBER: OrderNumber = OrderNumber { term: 3, number: 77 };

fn leaf(i: u32) -> Leaf {
    Leaf { device: NodeId(uuid::Uuid::from_u128(0x0190 << 112 | u128::from(i))), epoch: 1 + i % 3 }
}

fn tree(leaf_count: u32) -> Tree {
    Tree::build(&tenant(), NUMBER, (0..leaf_count).map(leaf).collect())
}

fn verify(proof: &MultiProof, tree: &Tree) -> Result<(), ProofError> {
    proof.verify(&tenant(), NUMBER, tree.root(), tree.leaf_count())
}

/// A tree's size and some of its leaves.
fn subset() -> impl Strategy<Value = (u32, Vec<u32>)> {
    (1..200u32)
        .prop_flat_map(|n| (Just(n), btree_set(0..n, 1..=(n as usize).min(40))))
        .prop_map(|(n, set)| (n, set.into_iter().collect()))
}

/// The root by its definition, halving from the top at the largest power of two, instead of climbing level by level.
fn top_by_definition(leaves: &[Leaf]) -> Hash {
    match leaves {
        [one] => one.hash(&tenant(), NUMBER),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node(&top_by_definition(left), &top_by_definition(right))
        }
    }
}

#[test]
fn the_root_is_the_one_the_definition_gives() {
    for n in 1..70 {
        let tree = tree(n);
        assert_eq!(tree.root(), root(n, top_by_definition(tree.leaves())), "{n} leaves");
    }
}

#[test]
fn a_tree_without_leaves_proves_nothing() {
    let tree = tree(0);
    assert_eq!(tree.leaf_count(), 0);
    assert_eq!(verify(&tree.prove(&[]), &tree), Err(ProofError::Empty));
    let invented = MultiProof { leaves: vec![(0, leaf(0))], siblings: vec![] };
    assert_eq!(verify(&invented, &tree), Err(ProofError::OutOfRange { index: 0, leaf_count: 0 }));
}

#[test]
fn an_odd_leaf_is_not_doubled() {
    let (three, leaves) = (tree(3), vec![leaf(0), leaf(1), leaf(2), leaf(2)]);
    let four = Tree::build(&tenant(), NUMBER, leaves);
    assert_ne!(three.root(), four.root());
    assert!(verify(&four.prove(&[3]), &three).is_err());
}

#[test]
fn a_proof_is_for_one_tenant_and_one_order() {
    let tree = tree(5);
    let proof = tree.prove(&[1, 2]);
    let other = "other".parse().unwrap();
    let wrong = Err(ProofError::WrongRoot);
    assert_eq!(proof.verify(&other, NUMBER, tree.root(), 5), wrong);
    assert_eq!(proof.verify(&tenant(), OrderNumber { term: 4, ..NUMBER }, tree.root(), 5), wrong);
    assert_eq!(proof.verify(&tenant(), OrderNumber { number: 78, ..NUMBER }, tree.root(), 5), wrong);
    assert_eq!(proof.verify(&tenant(), NUMBER, tree.root(), 5), Ok(()));
}

#[test]
fn shape_is_checked_before_anything_is_hashed_to_a_root() {
    let tree = tree(6);
    let good = tree.prove(&[1, 4]);
    assert_eq!(verify(&good, &tree), Ok(()));
    let bad = |change: &dyn Fn(&mut MultiProof)| {
        let mut proof = good.clone();
        change(&mut proof);
        verify(&proof, &tree).unwrap_err()
    };
    assert_eq!(bad(&|p| p.leaves.clear()), ProofError::Empty);
    assert_eq!(bad(&|p| p.leaves.reverse()), ProofError::Unsorted);
    assert_eq!(bad(&|p| p.leaves.insert(0, p.leaves[0])), ProofError::Unsorted);
    assert_eq!(bad(&|p| p.leaves[1].0 = 6), ProofError::OutOfRange { index: 6, leaf_count: 6 });
    assert_eq!(bad(&|p| p.siblings.truncate(p.siblings.len() - 1)), ProofError::TooFewSiblings);
    assert_eq!(bad(&|p| p.siblings.push(Hash::ZERO)), ProofError::TooManySiblings);
    assert_eq!(bad(&|p| p.siblings.swap(0, 1)), ProofError::WrongRoot);
}

#[test]
fn the_deepest_tree_has_32_levels_and_a_proof_of_33_siblings_fails() {
    assert_eq!([0, 1, 2, 3, 4, 5, 1 << 31].map(depth), [0, 0, 1, 2, 2, 3, 31]);
    assert_eq!((depth((1 << 31) + 1), depth(u32::MAX)), (32, PROOF_DEPTH_MAX));
    let proof = |siblings| MultiProof { leaves: vec![(0, leaf(0))], siblings: vec![Hash::ZERO; siblings] };
    let verify = |siblings| proof(siblings).verify(&tenant(), NUMBER, Hash::ZERO, u32::MAX);
    assert_eq!(verify(31), Err(ProofError::TooFewSiblings));
    assert_eq!(verify(32), Err(ProofError::WrongRoot));
    assert_eq!(verify(33), Err(ProofError::TooManySiblings));
}

#[test]
fn three_hundred_single_proofs_are_cut_from_one() {
    let tree = tree(90_000);
    let all: Vec<u32> = (600..900).collect();
    let relays = tree.prove(&all);
    assert_eq!(verify(&relays, &tree), Ok(()));
    let cutter = Cutter::new(&relays, &tenant(), NUMBER, tree.leaf_count()).unwrap();
    assert_eq!(cutter.root(), tree.root());
    let known: usize = cutter.rows.iter().map(|row| row.hashes.len()).sum();
    assert!(known < 2 * 300 + 2 * 17, "{known} nodes are known, about two per leaf");
    for (position, index) in all.iter().enumerate() {
        let cut = cutter.cut(&[position]).unwrap();
        assert_eq!(cut, tree.prove(&[*index]));
        assert_eq!(cut.siblings.len(), 17);
    }
    assert_eq!(cutter.cut(&[]), None);
    assert_eq!(cutter.cut(&[300]), None);
    assert_eq!(cutter.cut(&[299, 0, 0, 300]), Some(tree.prove(&[600, 899])));
}

#[test]
fn a_proof_on_the_wire_is_compact_and_comes_back() {
    let proof = tree(90_000).prove(&[4_711]);
    let bytes = rmp_serde::to_vec_named(&proof).unwrap();
    assert!(bytes.len() <= 17 * 34 + 64, "{} bytes", bytes.len());
    assert_eq!(rmp_serde::from_slice::<MultiProof>(&bytes).unwrap(), proof);
    let neighbours = tree(90_000).prove(&(0..300).collect::<Vec<_>>());
    let bytes = rmp_serde::to_vec_named(&neighbours).unwrap();
    assert!(bytes.len() <= 300 * 24 + 17 * 34 + 64, "{} bytes", bytes.len());
}

proptest! {
    #[test]
    fn whatever_the_tree_proves_verifies((n, indices) in subset()) {
        let tree = tree(n);
        let proof = tree.prove(&indices);
        prop_assert_eq!(verify(&proof, &tree), Ok(()));
        prop_assert!(indices.iter().all(|&i| proof.names(leaf(i).device, leaf(i).epoch)));
        prop_assert!(!proof.names(leaf(indices[0]).device, leaf(indices[0]).epoch + 1));
    }

    #[test]
    fn a_cut_of_a_cut_is_the_trees_own_proof((n, indices) in subset(), first: u64, second: u64) {
        let tree = tree(n);
        let keep = |mask: u64| move |leaf: &Leaf| mask >> (leaf.device.0.as_u128() % 64) & 1 == 1;
        let kept = |mask: u64| indices.iter().copied().filter(|&i| keep(mask)(&leaf(i))).collect::<Vec<_>>();
        let proof = tree.prove(&indices);
        let once = proof.cut(&tenant(), NUMBER, n, &keep(first));
        prop_assert_eq!(once.is_none(), kept(first).is_empty());
        let Some(once) = once else { return Ok(()) };
        prop_assert_eq!(&once, &tree.prove(&kept(first)));
        let twice = once.cut(&tenant(), NUMBER, n, &keep(second));
        prop_assert_eq!(twice.is_none(), kept(first & second).is_empty());
        let Some(twice) = twice else { return Ok(()) };
        prop_assert_eq!(verify(&twice, &tree), Ok(()));
        prop_assert_eq!(twice, tree.prove(&kept(first & second)));
    }

    #[test]
    fn one_altered_byte_of_a_leaf_an_index_or_a_sibling_fails((n, indices) in subset(), at: usize, flip in 1..=255u8) {
        let tree = tree(n);
        let good = tree.prove(&indices);
        let at_leaf = at % good.leaves.len();
        let alter = |bytes: &mut [u8]| bytes[at % bytes.len()] ^= flip;
        let mut bad = good.clone();
        let mut device = *bad.leaves[at_leaf].1.device.bytes();
        alter(&mut device);
        bad.leaves[at_leaf].1.device = NodeId(uuid::Uuid::from_bytes(device));
        prop_assert!(verify(&bad, &tree).is_err());

        let mut bad = good.clone();
        let mut epoch = bad.leaves[at_leaf].1.epoch.to_be_bytes();
        alter(&mut epoch);
        bad.leaves[at_leaf].1.epoch = u32::from_be_bytes(epoch);
        prop_assert!(verify(&bad, &tree).is_err());

        let mut bad = good.clone();
        let mut index = bad.leaves[at_leaf].0.to_be_bytes();
        alter(&mut index);
        bad.leaves[at_leaf].0 = u32::from_be_bytes(index);
        prop_assert!(verify(&bad, &tree).is_err());

        let mut root = tree.root();
        alter(&mut root.0);
        prop_assert_eq!(good.verify(&tenant(), NUMBER, root, n), Err(ProofError::WrongRoot));

        let mut count = n.to_be_bytes();
        alter(&mut count);
        prop_assert!(good.verify(&tenant(), NUMBER, tree.root(), u32::from_be_bytes(count)).is_err());

        for sibling in 0..good.siblings.len() {
            let mut bad = good.clone();
            alter(&mut bad.siblings[sibling].0);
            prop_assert!(verify(&bad, &tree).is_err());
        }
    }

    #[test]
    fn rly_13_a_relay_cannot_invent_a_leaf((n, indices) in subset(), count in 1..200u32, invented in 200..1_000u32, at: u32) {
        let tree = tree(n);
        let held = tree.prove(&indices);
        // Put among the leaves it holds, in place of one, or with the hashes of a tree of its own.
        let mut added = held.clone();
        added.leaves.retain(|(index, _)| *index != at % n);
        added.leaves.push((at % n, leaf(invented)));
        added.leaves.sort_by_key(|(index, _)| *index);
        prop_assert!(verify(&added, &tree).is_err());
        let own = Tree::build(&tenant(), NUMBER, (0..count).map(|i| leaf(invented + i)).collect());
        prop_assert!(verify(&own.prove(&[at % count]), &tree).is_err());
        let alone = MultiProof { leaves: vec![(at % n, leaf(invented))], siblings: held.siblings };
        prop_assert!(verify(&alone, &tree).is_err());
    }

    #[test]
    fn a_strangers_proof_never_panics(
        indices in proptest::collection::vec(0..70u32, 0..20), siblings in 0..80usize, count: u32, small in 0..70u32,
    ) {
        let leaves = indices.iter().map(|&i| (i, leaf(i))).collect();
        let proof = MultiProof { leaves, siblings: vec![Hash::ZERO; siblings] };
        for leaf_count in [count, small, u32::MAX] {
            prop_assert!(proof.verify(&tenant(), NUMBER, Hash::ZERO, leaf_count).is_err());
            let _ = proof.cut(&tenant(), NUMBER, leaf_count, &|leaf| leaf.epoch == 1);
        }
    }
}
