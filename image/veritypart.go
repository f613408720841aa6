package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"recast/pack"
)

// Verity is a dm-verity tree in a partition of an image, held against another partition,
// when the image was added.
type Verity struct {
	Tree int `json:"tree"`           // the partition that holds it, by number
	Data int `json:"data,omitempty"` // the other; 0: the tree is wrong, whatever its data is
	// RootHash in hex, as veritysetup prints it.
	RootHash string `json:"rootHash,omitempty"`
	// Wrong is why the tree does not prove the data; "" it does, each block.
	Wrong string `json:"wrong,omitempty"`
	// Named are the partitions, by number, in which the root hash stands in plain text, as
	// in the arguments that a boot loader gives a kernel.
	Named []int `json:"named,omitempty"`
}

// findVerity holds each tree of an image that is being added against each partition that
// might be its data: which one is, is only declared later. The image is not refused for a
// tree that is nobody's: a gate that counts on it is.
func findVerity(ctx context.Context, m *pack.Manifest, f *os.File) ([]Verity, error) {
	found := []Verity{}
	open := func() io.ReaderAt { return &Reader{Manifest: m, pack: f, chunk: -1} }
	in := func(p pack.Partition) func() io.ReaderAt {
		return func() io.ReaderAt { return io.NewSectionReader(open(), p.Start, p.End-p.Start) }
	}
	for _, p := range m.Layout.Partitions {
		head := make([]byte, min(veritySuper, p.End-p.Start))
		if err := readFull(open(), head, p.Start); err != nil {
			return nil, err
		}
		t, err := parseVerity(head, p.End-p.Start)
		if errors.Is(err, ErrNoTree) {
			continue
		}
		one := Verity{Tree: p.Number}
		if err != nil {
			one.Wrong = err.Error()
			found = append(found, one)
			continue
		}
		if one.RootHash, err = t.root(in(p)()); err != nil {
			return nil, err
		}
		for level := len(t.levels) - 2; level > 0 && one.Wrong == ""; level-- {
			n, err := t.wrong(ctx, level, in(p), in(p))
			if err != nil {
				return nil, err
			}
			if n >= 0 {
				one.Wrong = fmt.Sprintf("its block at byte %d is not what the one above it says", t.levels[level].start+n*t.hashBlock)
			}
		}
		if one.Wrong != "" {
			found = append(found, one)
			continue
		}
		for _, q := range m.Layout.Partitions {
			if q.Number == p.Number {
				continue
			}
			one := one
			one.Data = q.Number
			if size := t.levels[0].blocks * t.dataBlock; size > q.End-q.Start {
				one.Wrong = fmt.Sprintf("it is of %d bytes, and the partition has %d", size, q.End-q.Start)
			} else if n, err := t.wrong(ctx, 0, in(q), in(p)); err != nil {
				return nil, err
			} else if n >= 0 {
				one.Wrong = fmt.Sprintf("the block of the partition at byte %d is another one", n*t.dataBlock)
			} else if one.Named, err = named(ctx, m, in, one); err != nil {
				return nil, err
			}
			found = append(found, one)
		}
	}
	return found, nil
}

// named looks for the root hash in all other partitions.
func named(ctx context.Context, m *pack.Manifest, in func(pack.Partition) func() io.ReaderAt, v Verity) (list []int, err error) {
	text := []byte(v.RootHash)
	for _, p := range m.Layout.Partitions {
		if p.Number == v.Tree || p.Number == v.Data {
			continue
		}
		at, err := firstIn(ctx, p.End-p.Start, func() func(from, to int64) (int64, error) {
			r := in(p)()
			return func(from, to int64) (int64, error) {
				from = max(0, from-int64(len(text))+1) // it may begin in the span before
				b := make([]byte, to-from)
				if err := readFull(r, b, from); err != nil {
					return -1, err
				}
				at := int64(bytes.Index(b, text))
				if at >= 0 {
					at += from
				}
				return at, nil
			}
		})
		if err != nil {
			return nil, err
		}
		if at >= 0 {
			list = append(list, p.Number)
		}
	}
	return list, nil
}
