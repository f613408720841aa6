package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// dm-verity's tree of hashes, as veritysetup format writes it (cryptsetup's wiki, DMVerity,
// and the kernel's admin-guide/device-mapper/verity.rst): a superblock in the first block,
// then the levels, from the one that the root hash is of down to that of the data.

const (
	verityMagic = "verity\x00\x00"
	veritySuper = 512
	// maxVerityBlock is veritysetup's.
	maxVerityBlock = 512 << 10
)

// ErrNoTree is that of a partition without a superblock.
var ErrNoTree = errors.New("it holds no dm-verity tree, as veritysetup format makes one with its superblock")

// verityTree is one, by what its superblock says.
type verityTree struct {
	new       func() hash.Hash
	salt      []byte
	dataBlock int64
	hashBlock int64
	// levels from the data up, which is the first.
	levels []verityLevel
}

// verityLevel begins so many bytes behind the beginning of what it lies in.
type verityLevel struct{ start, blocks, size int64 }

func (l verityLevel) end() int64 { return l.start + l.blocks*l.size }

// parseVerity reads the superblock of a tree in a partition of so many bytes.
func parseVerity(b []byte, partition int64) (*verityTree, error) {
	if len(b) < veritySuper || !bytes.HasPrefix(b, []byte(verityMagic)) {
		return nil, ErrNoTree
	}
	le := binary.LittleEndian
	if version, kind := le.Uint32(b[8:]), le.Uint32(b[12:]); version != 1 || kind != 1 {
		return nil, fmt.Errorf("its dm-verity tree has version %d and hash type %d: want 1 and 1", version, kind)
	}
	t := &verityTree{dataBlock: int64(le.Uint32(b[64:])), hashBlock: int64(le.Uint32(b[68:]))}
	switch name, _, _ := bytes.Cut(b[32:64], []byte{0}); string(name) {
	case "sha256":
		t.new = sha256.New
	case "sha512":
		t.new = sha512.New
	default:
		return nil, fmt.Errorf("its dm-verity tree is of %q: want sha256 or sha512", name)
	}
	for _, size := range []int64{t.dataBlock, t.hashBlock} {
		if size < 512 || size > maxVerityBlock || size&(size-1) != 0 {
			return nil, fmt.Errorf("its dm-verity tree has blocks of %d bytes", size)
		}
	}
	salt := int(le.Uint16(b[80:]))
	if salt > 256 {
		return nil, fmt.Errorf("its dm-verity tree has a salt of %d bytes", salt)
	}
	t.salt = bytes.Clone(b[88 : 88+salt])
	blocks := le.Uint64(b[72:])
	if blocks < 2 || blocks > uint64(1<<62/t.dataBlock) {
		return nil, fmt.Errorf("its dm-verity tree is of %d blocks", blocks)
	}
	t.levels = []verityLevel{{blocks: int64(blocks), size: t.dataBlock}}
	sum := int64(t.new().Size())
	for n := int64(blocks); n > 1; {
		n = (n*sum + t.hashBlock - 1) / t.hashBlock // a block is full of digests: both are powers of two
		t.levels = append(t.levels, verityLevel{blocks: n, size: t.hashBlock})
	}
	at := t.hashBlock
	for i := len(t.levels) - 1; i > 0; i-- {
		t.levels[i].start = at
		if at = t.levels[i].end(); at > partition {
			return nil, fmt.Errorf("its dm-verity tree is cut off: it has %d bytes or more, the partition %d", at, partition)
		}
	}
	return t, nil
}

func (t *verityTree) sum(h hash.Hash, block []byte) []byte {
	h.Reset()
	h.Write(t.salt)
	h.Write(block)
	return h.Sum(nil)
}

// root hash: the digest of the highest block, in hex.
func (t *verityTree) root(tree io.ReaderAt) (string, error) {
	top := t.levels[len(t.levels)-1]
	b := make([]byte, top.size)
	if err := readFull(tree, b, top.start); err != nil {
		return "", err
	}
	return hex.EncodeToString(t.sum(t.new(), b)), nil
}

// wrong gives the first block of a level that is not what the level above says, -1 none.
// below is where the level lies, tree where the one above does; each is opened by whoever
// reads it.
func (t *verityTree) wrong(ctx context.Context, level int, below, tree func() io.ReaderAt) (int64, error) {
	l, above, digest := t.levels[level], t.levels[level+1], int64(t.new().Size())
	at, err := firstIn(ctx, l.blocks*l.size, func() func(from, to int64) (int64, error) {
		r, digests, h := below(), tree(), t.new()
		room := min(spanSize, l.blocks*l.size)
		blocks, sums := make([]byte, room), make([]byte, room/l.size*digest)
		return func(from, to int64) (int64, error) {
			b, want := blocks[:to-from], sums[:(to-from)/l.size*digest]
			if err := errors.Join(readFull(r, b, l.start+from), readFull(digests, want, above.start+from/l.size*digest)); err != nil {
				return -1, err
			}
			for k := int64(0); k < int64(len(b)); k += l.size {
				if !bytes.Equal(t.sum(h, b[k:k+l.size]), want[k/l.size*digest:][:digest]) {
					return from + k, nil
				}
			}
			return -1, nil
		}
	})
	if at < 0 {
		return -1, err
	}
	return at / l.size, err
}

// spanSize is what one goroutine reads at a time: a multiple of every block's size.
const spanSize = 8 << 20

// firstIn gives the lowest offset that is found in the spans of so many bytes, -1 none.
// On each processor one function that look makes goes from span to span.
func firstIn(ctx context.Context, size int64, look func() func(from, to int64) (int64, error)) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		next  atomic.Int64
		mu    sync.Mutex
		first = int64(-1)
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			in := look()
			for ctx.Err() == nil {
				from := (next.Add(1) - 1) * spanSize
				if from >= size {
					return
				}
				at, err := in(from, min(from+spanSize, size))
				if err != nil {
					cancel(err)
					return
				}
				if at >= 0 {
					next.Store(size/spanSize + 1) // whoever is at an earlier span ends it
					mu.Lock()
					if first < 0 || at < first {
						first = at
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return -1, context.Cause(ctx)
	}
	return first, nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}
