package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"recast/inventory"
	"recast/pack"
)

// Index gives the block index of image d. An image that was added before there
// were any gets its own here, which takes one read of the pack.
func (s *Store) Index(ctx context.Context, d inventory.Digest) (*pack.Index, error) {
	x, err := s.storedIndex(d)
	if x == nil && err == nil {
		if err = s.flights.do(ctx, "index "+d.Hex(), func(ctx context.Context) error {
			_, err := s.indexed(ctx, d)
			return err
		}); err == nil {
			x, err = s.storedIndex(d)
		}
	}
	if err == nil && x == nil {
		err = ErrNotFound // removed meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("index image %s: %w", d.Short(), err)
	}
	return x, nil
}

// storedIndex is nil where there is none, or where ours is not what it was.
func (s *Store) storedIndex(d inventory.Digest) (*pack.Index, error) {
	info, err := s.Info(d)
	if err != nil || info.Index == "" {
		return nil, err
	}
	m, err := s.manifest(info)
	if err != nil {
		return nil, err
	}
	x, err := s.readIndex(info, m)
	if err != nil {
		s.log.Warn("block index is made anew", "image", d, "err", err)
		return nil, nil
	}
	return x, nil
}

func (s *Store) readIndex(info Info, m *pack.Manifest) (*pack.Index, error) {
	b, err := s.blob(info.Index)
	if err != nil {
		return nil, err
	}
	return pack.ParseIndex(b, m)
}

// blob reads a small one and checks it against its name.
func (s *Store) blob(d inventory.Digest) ([]byte, error) {
	b, err := s.root.ReadFile("blobs/" + d.Hex())
	if err != nil {
		return nil, err
	}
	if got := inventory.DigestOf(b); got != d {
		return nil, fmt.Errorf("%s has digest %s", s.blobPath(d.Hex()), got)
	}
	return b, nil
}

// sameBytes hashes a blob of any size.
func (s *Store) sameBytes(d inventory.Digest) error {
	f, err := s.root.Open("blobs/" + d.Hex())
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := inventory.NewDigest([32]byte(h.Sum(nil))); got != d {
		return fmt.Errorf("%s has digest %s", s.blobPath(d.Hex()), got)
	}
	return nil
}

// indexed gives the index of an image, and makes and keeps it where it is
// missing. Only a flight calls it.
func (s *Store) indexed(ctx context.Context, d inventory.Digest) (*pack.Index, error) {
	info, err := s.Info(d)
	if err != nil {
		return nil, err
	}
	m, err := s.manifest(info)
	if err != nil {
		return nil, err
	}
	if info.Index != "" {
		if x, err := s.readIndex(info, m); err == nil {
			return x, nil
		}
	}
	began := time.Now()
	f, err := s.root.Open("blobs/" + info.Pack.Hex())
	if err != nil {
		return nil, fmt.Errorf("%w: pack %s cannot be opened: %w", ErrDamaged, s.blobPath(info.Pack.Hex()), err)
	}
	defer f.Close()
	x, err := pack.NewIndex(ctx, m, func(i int) ([]byte, error) { return m.ReadChunk(f, i) })
	if err != nil {
		return nil, s.broken(ctx, d, err)
	}
	s.change.Lock()
	defer s.change.Unlock()
	if info, err = s.Info(d); err != nil {
		return nil, err
	}
	old := info.Index
	if err := s.keepIndex(&info, x); err != nil {
		return nil, err
	}
	if err := s.writeRecord(info); err != nil {
		return nil, errors.Join(err, s.unlink(info.Index))
	}
	s.put(info)
	if err := s.unlink(old); err != nil {
		return nil, err
	}
	s.log.Info("block index made", "image", d, "bytes", info.IndexSize, "took", time.Since(began).Round(time.Millisecond))
	return x, nil
}

// keepIndex writes the blob and names it in the record, which the caller writes.
func (s *Store) keepIndex(info *Info, x *pack.Index) error {
	b := x.Encode()
	info.Index, info.IndexSize = inventory.DigestOf(b), int64(len(b))
	return s.write("blobs", info.Index.Hex(), b)
}
