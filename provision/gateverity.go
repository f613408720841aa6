package provision

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"recast/image"
	"recast/inventory"
)

// VerityRoot is a partition whose data a gate does not read: dm-verity proves each block
// as the machine's kernel reads it, by the tree that the gate proves.
type VerityRoot struct {
	Data inventory.Region `json:"data"`
	Tree string           `json:"tree"` // as declared: GPT name or number
	// RootHash in hex, which the kernel is given.
	RootHash string `json:"rootHash"`
}

// verityOf finds the declared trees of an image, and that something which is proved gives
// the kernel their root hashes: else it would prove nothing. numbers gives those of
// partitions by name, no two of which are one.
func verityOf(r inventory.ResolvedImage, numbers func(names []string) ([]int, error), found []image.Verity) (roots []VerityRoot, err error) {
	datas := slices.Sorted(maps.Keys(r.Verity))
	var all []string
	for _, data := range datas {
		all = append(all, data, r.Verity[data])
	}
	if _, err := numbers(slices.Concat(r.Immutable, all)); err != nil { // no partition is two things
		return nil, err
	}
	immutable, err := numbers(r.Immutable)
	if err != nil {
		return nil, err
	}
	for _, data := range datas {
		tree := r.Verity[data]
		pair, err := numbers([]string{data, tree})
		if err != nil {
			return nil, err
		}
		v, err := verityPair(found, pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("%s: partition %s: %w", data, tree, err)
		}
		if !slices.ContainsFunc(v.Named, func(n int) bool { return slices.Contains(immutable, n) }) {
			return nil, fmt.Errorf("%s: its root hash %s stands in no immutable partition, so that nothing that was proved gives it to a kernel when the disk is started; put it into the boot loader's arguments, and name the partition that has them in immutable", data, v.RootHash)
		}
		if r.Boot != nil && !slices.ContainsFunc(r.Boot.Args, func(arg string) bool { return strings.Contains(strings.ToLower(arg), v.RootHash) }) {
			return nil, fmt.Errorf("%s: the args of its boot do not give the kernel the root hash %s; add it as the image's ramdisk reads it: roothash=, or usrhash=, and the hash", data, v.RootHash)
		}
		roots = append(roots, VerityRoot{Data: inventory.Region{Name: data}, Tree: tree, RootHash: v.RootHash})
	}
	return roots, nil
}

// verityPair is what was found of two partitions when the image was added.
func verityPair(found []image.Verity, data, tree int) (image.Verity, error) {
	if found == nil {
		return image.Verity{}, fmt.Errorf("nobody looked for a tree when the image was added: recast image add does, again")
	}
	for _, v := range found {
		switch {
		case v.Tree != tree || v.Data != 0 && v.Data != data:
		case v.Data == 0:
			return v, fmt.Errorf("%s", v.Wrong)
		case v.Wrong != "":
			return v, fmt.Errorf("its dm-verity tree is not that of this data: %s", v.Wrong)
		default:
			return v, nil
		}
	}
	return image.Verity{}, image.ErrNoTree
}

// gateVerity are those of the gate of a machine's next boot.
func gateVerity(s State) []VerityRoot {
	if g := gated(s); g != nil && s.Status.Gate != nil {
		return g.Verity
	}
	return nil
}

// reads are the regions that the next job is about: with an operator's word that it may be
// repaired, the data of trees too.
func (g *Gate) reads() []inventory.Region {
	all := slices.Clone(g.Regions)
	for _, v := range g.Verity {
		if g.Consent != nil {
			all = append(all, v.Data)
		}
	}
	return all
}

// verityText says what is proved as it is read; "" nothing is.
func verityText(roots []VerityRoot) string {
	text := ""
	for _, v := range roots {
		text += fmt.Sprintf("; %s is proved by the kernel as it is read, root hash %s", v.Data.Name, v.RootHash[:min(12, len(v.RootHash))])
	}
	return text
}
