package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// bbolt trusts its pages: a flipped bit makes it fault or fill the memory, part
// of it in goroutines that nobody can guard. So every page that can be reached
// is looked at, by plain reads, before bbolt opens the file.
//
// A page begins with its number (8 bytes), flags (2), the count of its elements
// (2) and how many pages follow as its overflow (4); numbers are in the
// machine's order.
const (
	pageHeader = 16
	pageBranch = 0x01 // elements: position (4), key size (4), page (8)
	pageLeaf   = 0x02 // elements: flags (4), position (4), key size (4), value size (4)
	leafBucket = 0x01 // the element's flag: its value is the root page (8) and a sequence (8)

	boltMagic   = 0xED0CDAED
	boltVersion = 2
)

var order = binary.NativeEndian

type pageCheck struct {
	r    io.ReaderAt
	size int64  // of a page
	end  uint64 // the first page number that is not in use
	seen []uint64
	leaf []byte // the page being looked at; a branch keeps its own
}

// checkFile holds a shared lock on the file while it looks, so that no writer
// is caught in the middle of a change. oneMeta tells that only one of the two
// meta pages is whole: a power cut in the middle of a commit that nobody was
// told of, or damage to the last one.
func checkFile(path string, timeout time.Duration) (oneMeta bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for deadline := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return false, fmt.Errorf("lock: %w", err)
		}
		if time.Now().After(deadline) {
			return false, bolterrors.ErrTimeout
		}
	}
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, errors.New("it is not a regular file")
	}
	return checkPages(f, info.Size())
}

// checkPages walks all pages from the newest meta page that is whole, the one
// that bbolt would take.
func checkPages(r io.ReaderAt, fileSize int64) (oneMeta bool, err error) {
	at := func(offset int64) (*metaPage, error) {
		page := make([]byte, pageHeader+metaSize)
		switch n, err := r.ReadAt(page, offset); {
		case n == len(page):
			return readMeta(page), nil
		case err == io.EOF:
			return nil, nil
		default:
			return nil, err
		}
	}
	meta, err := at(0)
	if err != nil {
		return false, err
	}
	// The second stands one page further. Where the first is bad its page size
	// is no help, so all are tried, as bbolt does.
	sizes := []int64{1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10}
	if meta != nil {
		sizes = []int64{int64(meta.pageSize)}
	}
	whole := 0
	if meta != nil {
		whole++
	}
	for _, size := range sizes {
		second, err := at(size)
		if err != nil {
			return false, err
		}
		if second == nil {
			continue
		}
		if int64(second.pageSize) != size {
			return false, fmt.Errorf("%w: its meta pages disagree", errDamaged)
		}
		whole++
		if meta == nil || second.txid > meta.txid {
			meta = second
		}
		break
	}
	switch {
	case meta == nil:
		return false, fmt.Errorf("%w: neither meta page is whole", errDamaged)
	case meta.pageSize < 1<<10 || meta.pageSize > 64<<10 || meta.pageSize&(meta.pageSize-1) != 0:
		return false, fmt.Errorf("%w: its pages have %d bytes", errDamaged, meta.pageSize)
	case meta.end > uint64(fileSize)/uint64(meta.pageSize):
		return false, fmt.Errorf("%w: it is cut short: %d bytes of %d pages", errDamaged, fileSize, meta.end)
	case meta.freelist != ^uint64(0):
		// Ours never writes one; bbolt would trust it.
		return false, fmt.Errorf("%w: it has a list of free pages, which recast does not write", errDamaged)
	}
	c := &pageCheck{r: r, size: int64(meta.pageSize), end: meta.end, seen: make([]uint64, meta.end/64+1)}
	return whole == 1, c.tree(meta.root, 0, true, nil, nil)
}

type metaPage struct {
	pageSize                  uint32
	root, freelist, end, txid uint64
}

const metaSize = 64

// readMeta returns nil for anything that bbolt would not take for a meta page.
func readMeta(page []byte) *metaPage {
	m := page[pageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	if order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion || order.Uint64(m[56:]) != sum.Sum64() {
		return nil
	}
	return &metaPage{pageSize: order.Uint32(m[8:]), root: order.Uint64(m[16:]), freelist: order.Uint64(m[32:]), end: order.Uint64(m[40:]), txid: order.Uint64(m[48:])}
}

// claim marks a page and its overflow; no page may be reached twice.
func (c *pageCheck) claim(id, overflow uint64) error {
	if id < 2 || id >= c.end || overflow >= c.end-id {
		return fmt.Errorf("%w: page %d and its overflow of %d lie outside of the file", errDamaged, id, overflow)
	}
	for p := id; p <= id+overflow; p++ {
		if c.seen[p/64]&(1<<(p%64)) != 0 {
			return fmt.Errorf("%w: page %d is used twice", errDamaged, p)
		}
		c.seen[p/64] |= 1 << (p % 64)
	}
	return nil
}

// tree checks the page id and all below it. Keys must lie in [low, high). Only
// the outermost tree holds buckets.
func (c *pageCheck) tree(id uint64, depth int, outer bool, low, high []byte) error {
	if depth > 64 {
		return fmt.Errorf("%w: page %d lies too deep", errDamaged, id)
	}
	if id < 2 || id >= c.end {
		return fmt.Errorf("%w: page %d lies outside of the file", errDamaged, id)
	}
	// One read usually brings a page and its overflow.
	if c.leaf == nil {
		c.leaf = make([]byte, 2*c.size)
	}
	page := c.leaf[:2*c.size]
	if n, err := c.r.ReadAt(page, int64(id)*c.size); n < int(c.size) {
		return fmt.Errorf("read page %d: %w", id, err)
	} else {
		page = page[:n]
	}
	overflow := uint64(order.Uint32(page[12:]))
	if order.Uint64(page) != id {
		return fmt.Errorf("%w: page %d says that it is page %d", errDamaged, id, order.Uint64(page))
	}
	if err := c.claim(id, overflow); err != nil {
		return err
	}
	whole := int(overflow+1) * int(c.size)
	if whole > len(page) {
		have := len(page)
		page = slices.Grow(page, whole-have)[:whole]
		if _, err := c.r.ReadAt(page[have:], int64(id)*c.size+int64(have)); err != nil {
			return fmt.Errorf("read page %d: %w", id, err)
		}
	}
	c.leaf = page
	page = page[:whole]
	if order.Uint16(page[8:]) == pageBranch || outer {
		page = bytes.Clone(page) // it is needed while others are read
	}
	return c.elements(id, page, depth, outer, low, high)
}

func (c *pageCheck) elements(id uint64, page []byte, depth int, outer bool, low, high []byte) error {
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if flags != pageBranch && flags != pageLeaf {
		return fmt.Errorf("%w: page %d is of kind %x", errDamaged, id, flags)
	}
	if pageHeader+count*16 > len(page) || flags == pageBranch && count == 0 {
		return fmt.Errorf("%w: page %d has %d elements", errDamaged, id, count)
	}
	// part cuts one key or value out of the page.
	part := func(element int, position, size uint64) ([]byte, error) {
		from := uint64(pageHeader+element*16) + position
		if from+size > uint64(len(page)) || from < uint64(pageHeader+count*16) {
			return nil, fmt.Errorf("%w: page %d element %d lies outside of the page", errDamaged, id, element)
		}
		return page[from : from+size], nil
	}
	type child struct {
		page uint64
		key  []byte
	}
	var children []child
	var last []byte
	for i := range count {
		e := page[pageHeader+i*16:]
		var position, keySize uint64
		if flags == pageBranch {
			position, keySize = uint64(order.Uint32(e)), uint64(order.Uint32(e[4:]))
		} else {
			position, keySize = uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:]))
		}
		key, err := part(i, position, keySize)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(key, last) <= 0 || bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0 {
			return fmt.Errorf("%w: page %d element %d is out of order", errDamaged, id, i)
		}
		last = key
		if flags == pageBranch {
			children = append(children, child{order.Uint64(e[8:]), key})
			continue
		}
		value, err := part(i, position+keySize, uint64(order.Uint32(e[12:])))
		if err != nil {
			return err
		}
		switch kind := order.Uint32(e); {
		case kind == 0:
		case kind == leafBucket && outer:
			if err := c.bucket(id, value, depth); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: page %d element %d is of kind %x", errDamaged, id, i, kind)
		}
	}
	for i, ch := range children {
		below := high
		if i+1 < len(children) {
			below = children[i+1].key
		}
		if err := c.tree(ch.page, depth+1, outer, ch.key, below); err != nil {
			return err
		}
	}
	return nil
}

// bucket checks a bucket inside of another: a tree of its own, or, while it is
// small, a page within the value.
func (c *pageCheck) bucket(id uint64, value []byte, depth int) error {
	if len(value) < 16 {
		return fmt.Errorf("%w: page %d holds a bucket that is cut short", errDamaged, id)
	}
	if root := order.Uint64(value); root != 0 {
		return c.tree(root, depth+1, false, nil, nil)
	}
	inline := value[16:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != pageLeaf {
		return fmt.Errorf("%w: page %d holds a bucket that is no page", errDamaged, id)
	}
	return c.elements(id, inline, depth+1, false, nil, nil)
}
