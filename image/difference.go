package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"recast/inventory"
	"recast/pack"
)

// Difference is what a disk that holds image From lacks of image To, as two
// blobs, and what it takes. It is the record that stands in
// differences/<from>-<to>.json.
type Difference struct {
	From inventory.Digest `json:"from"`
	To   inventory.Digest `json:"to"`
	// List and Pack are empty where there is nothing to fetch instead of To's own
	// frames: From is To, or lacks nearly all of it.
	List     inventory.Digest `json:"list,omitempty"`
	Pack     inventory.Digest `json:"pack,omitempty"`
	ListSize int64            `json:"listSize,omitempty"`
	PackSize int64            `json:"packSize,omitempty"`
	// Fetch and Write are the bytes that a disk with From takes: over the wire with
	// the list and all, and written, since they stand elsewhere in From or nowhere.
	Fetch int64     `json:"fetch"`
	Write int64     `json:"write"`
	Added time.Time `json:"added"`
}

type pair struct{ from, to inventory.Digest }

func (d Difference) pair() pair { return pair{d.From, d.To} }

func (p pair) record() string { return "differences/" + p.from.Hex() + "-" + p.to.Hex() + ".json" }

type differenceRecord struct {
	Version int `json:"version"`
	Difference
}

const differenceVersion = 2

// Built gives the difference between two images if it is here already.
func (s *Store) Built(from, to inventory.Digest) (Difference, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d, ok := s.differences[pair{from, to}]
	return d, ok
}

// Differences that are here, to image to; by From.
func (s *Store) Differences(to inventory.Digest) []Difference {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Difference
	for p, d := range s.differences {
		if p.to == to {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Difference) int { return cmp.Compare(a.From, b.From) })
	return all
}

// Difference gives the difference between two images, and builds it where it is
// not here yet: once, whoever asks, and one at a time. It takes some ten
// seconds for each GiB that was changed, and 6 MB of memory for each GiB of both. After
// an error, or once nobody waits any more, nothing of it stays.
func (s *Store) Difference(ctx context.Context, from, to inventory.Digest) (Difference, error) {
	p := pair{from, to}
	if d, ok := s.Built(from, to); ok {
		return d, nil
	}
	err := s.flights.do(ctx, "difference "+p.record(), func(ctx context.Context) error {
		if _, ok := s.Built(from, to); ok {
			return nil
		}
		return s.build(ctx, p)
	})
	d, ok := s.Built(from, to)
	if err == nil && !ok {
		err = ErrNotFound // an image was removed meanwhile
	}
	if err != nil {
		return Difference{}, fmt.Errorf("build the difference from image %s to %s: %w", from.Short(), to.Short(), err)
	}
	return d, nil
}

// build makes and keeps one difference. Only a flight calls it.
func (s *Store) build(ctx context.Context, p pair) (err error) {
	began := time.Now()
	if err := s.fits(p); err != nil {
		return err
	}
	from, err := s.indexed(ctx, p.from)
	if err != nil {
		return err
	}
	to, err := s.indexed(ctx, p.to)
	if err != nil {
		return err
	}
	m := to.Manifest
	source, err := s.root.Open("blobs/" + inventory.NewDigest(m.Pack).Hex())
	if err != nil {
		return fmt.Errorf("%w: pack %s cannot be opened: %w", ErrDamaged, s.blobPath(m.Pack.Hex()), err)
	}
	defer source.Close()
	f, temp, err := s.temp("blobs")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if temp != "" {
			s.root.Remove(temp)
		}
	}()
	d := Difference{From: p.from, To: p.to, Added: s.o.Now().UTC()}
	var list []byte
	var made *pack.Difference
	if p.from != p.to {
		made, err = pack.WriteDifference(ctx, f, from, to, func(i int) ([]byte, error) { return m.ReadChunk(source, i) })
	}
	if err != nil && !errors.Is(err, pack.ErrNoDifference) {
		return s.broken(ctx, p.to, err)
	}
	// A machine may have less room to keep moved blocks in, and fetches a little more.
	disk := pack.Expect(from, to)
	moves := pack.NewPlan(disk, made, math.MaxInt32)
	if made != nil && moves.Fetched > m.PackSize/10*9 {
		made, moves = nil, pack.NewPlan(disk, nil, math.MaxInt32)
	}
	if made != nil {
		list = made.Encode()
		d.List, d.ListSize = inventory.DigestOf(list), int64(len(list))
		d.Pack, d.PackSize = inventory.NewDigest(made.Pack), made.PackSize
	}
	d.Fetch, d.Write = moves.Fetched+d.ListSize, moves.Written
	if err := f.Sync(); err != nil {
		return err
	}

	s.change.Lock()
	defer s.change.Unlock()
	for _, image := range []inventory.Digest{p.from, p.to} {
		if _, err := s.Info(image); err != nil {
			return err // removed meanwhile
		}
	}
	if now, err := s.Info(p.to); err != nil || now.Pack != inventory.NewDigest(m.Pack) {
		return errors.Join(errors.New("the image was packed anew meanwhile"), err)
	}
	// A crash from here on leaves blobs without a record, which Open removes.
	if made != nil {
		if err := s.root.Rename(temp, "blobs/"+d.Pack.Hex()); err != nil {
			return err
		}
		temp = "" // renamed
		if err := s.write("blobs", d.List.Hex(), list); err != nil {
			return errors.Join(err, s.unlink(d.Pack))
		}
	}
	b, err := json.MarshalIndent(differenceRecord{differenceVersion, d}, "", "  ")
	if err != nil {
		return err
	}
	if err := s.write("differences", path.Base(p.record()), append(b, '\n')); err != nil {
		return errors.Join(err, s.unlink(d.List, d.Pack))
	}
	s.mu.Lock()
	s.differences[p] = d
	s.refer()
	s.mu.Unlock()
	s.log.Info("difference built", "from", p.from, "to", p.to, "fetch", d.Fetch, "whole", m.PackSize, "write", d.Write,
		"took", time.Since(began).Round(time.Millisecond))
	return nil
}

// maxBuildMemory that two images may take to be compared: more than two full ones
// of 64 GiB.
const maxBuildMemory = 1 << 30

func (s *Store) fits(p pair) error {
	var need int64
	for _, d := range []inventory.Digest{p.from, p.to} {
		m, err := s.Manifest(d)
		if err != nil {
			return err
		}
		need += pack.IndexMemory(m)
	}
	if need > maxBuildMemory {
		return fmt.Errorf("to compare them takes %s of memory, the limit is %s", inventory.SizeText(need), inventory.SizeText(maxBuildMemory))
	}
	return nil
}

// broken marks the image whose pack does not hold what its manifest says.
func (s *Store) broken(ctx context.Context, d inventory.Digest, err error) error {
	if !errors.Is(err, pack.ErrBadFrame) {
		return err
	}
	err = fmt.Errorf("%w: %w", ErrDamaged, err)
	if ctx.Err() == nil {
		err = errors.Join(err, s.mark(d, DamageOf(err)))
	}
	return err
}

// dropDifferences that which picks, records first: a crash between leaves
// garbage, which Open removes. The caller holds change.
func (s *Store) dropDifferences(which func(Difference) bool) error {
	var gone []Difference
	s.mu.Lock()
	for p, d := range s.differences {
		if which(d) {
			gone = append(gone, d)
			delete(s.differences, p)
		}
	}
	s.refer()
	s.mu.Unlock()
	var err error
	for _, d := range gone {
		s.log.Info("difference removed", "from", d.From, "to", d.To)
		err = errors.Join(err, s.root.Remove(d.pair().record()), s.unlink(d.List, d.Pack))
	}
	if len(gone) > 0 {
		err = errors.Join(err, s.syncDir("differences"))
	}
	return err
}

// checkDerived drops the index and the differences of an image that are not the
// bytes they were: they are built anew when they are needed.
func (s *Store) checkDerived(d inventory.Digest) error {
	bad := map[inventory.Digest]bool{}
	look := func(blob inventory.Digest, what string) {
		if blob == "" {
			return
		}
		if err := s.sameBytes(blob); err != nil {
			bad[blob] = true
			s.log.Warn(what+" is damaged; it is built anew when it is needed", "image", d, "err", err)
		}
	}
	info, err := s.Info(d)
	if err != nil {
		return err
	}
	look(info.Index, "block index")
	for _, x := range s.Differences(d) {
		look(x.List, "difference from "+x.From.Short())
		look(x.Pack, "difference from "+x.From.Short())
	}
	if len(bad) == 0 {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	err = s.dropDifferences(func(x Difference) bool { return bad[x.List] || bad[x.Pack] })
	if info, e := s.Info(d); e == nil && bad[info.Index] {
		gone := info.Index
		info.Index, info.IndexSize = "", 0
		err = errors.Join(err, s.writeRecord(info))
		s.put(info)
		err = errors.Join(err, s.unlink(gone))
	}
	return err
}

// loadDifferences reads the records; one that does not fit what is here is
// forgotten, since it can be built again.
func (s *Store) loadDifferences() error {
	names, err := s.readDir("differences")
	if err != nil {
		return err
	}
	for _, name := range names {
		d, err := s.readDifference(name)
		if err == nil {
			s.differences[d.pair()] = d
			continue
		}
		if !strings.HasPrefix(name, tempPrefix) {
			s.log.Info("difference is forgotten", "file", "differences/"+name, "err", err)
		}
		if err := s.root.Remove("differences/" + name); err != nil {
			return err
		}
	}
	s.refer()
	return nil
}

func (s *Store) readDifference(name string) (Difference, error) {
	var r differenceRecord
	b, err := s.root.ReadFile("differences/" + name)
	if err != nil {
		return r.Difference, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r.Difference, err
	}
	if r.Version != differenceVersion || r.pair().record() != "differences/"+name {
		return r.Difference, errors.New("it is not what its name says, or of another version")
	}
	for _, image := range []inventory.Digest{r.From, r.To} {
		if _, err := s.Info(image); err != nil {
			return r.Difference, err
		}
	}
	for _, b := range []struct {
		digest inventory.Digest
		size   int64
	}{{r.List, r.ListSize}, {r.Pack, r.PackSize}} {
		if b.digest == "" {
			continue
		}
		var fi os.FileInfo
		if fi, err = s.root.Stat("blobs/" + b.digest.Hex()); err == nil && fi.Size() != b.size {
			err = fmt.Errorf("%s has %d bytes instead of %d", s.blobPath(b.digest.Hex()), fi.Size(), b.size)
		}
		if err != nil {
			return r.Difference, err
		}
	}
	return r.Difference, nil
}
