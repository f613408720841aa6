package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"recast/inventory"
	"recast/pack"
)

// Check looks at the store's own copy of one frame of image d, or at its
// manifest for frame -1, as when a machine says that it got wrong bytes. A bad
// copy marks the image damaged, which lasts until it is added again, and gives
// ErrDamaged; nil means that our copy is good and the bytes changed on the way.
func (s *Store) Check(ctx context.Context, d inventory.Digest, frame int) error {
	return s.check(ctx, d, func(m *pack.Manifest, f *os.File) error {
		switch {
		case frame == -1:
			return nil
		case frame < -1 || frame >= len(m.Chunks):
			return fmt.Errorf("frame %d: the image has %d", frame, len(m.Chunks))
		}
		return s.checkFrame(m, f, frame, nil)
	})
}

// Verify looks at every byte of the store's copy of image d. A good one loses
// its mark. A block index or a difference that is not what it was is dropped.
func (s *Store) Verify(ctx context.Context, d inventory.Digest) error {
	err := s.check(ctx, d, func(m *pack.Manifest, f *os.File) error {
		buf := make([]byte, pack.ChunkSize)
		for i := range m.Chunks {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.checkFrame(m, f, i, buf); err != nil {
				return err
			}
		}
		// Frames may unpack to the right chunks and differ from what was recorded.
		h := sha256.New()
		n, err := io.Copy(h, contextReader{ctx, io.NewSectionReader(f, 0, m.PackSize+1)})
		if err != nil {
			return err
		}
		if pack.Digest(h.Sum(nil)) != m.Pack {
			return fmt.Errorf("%w: pack %s has %d bytes with digest %x", ErrDamaged, f.Name(), n, h.Sum(nil))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.checkDerived(d); err != nil {
		return fmt.Errorf("check image %s: %w", d.Short(), err)
	}
	return s.mark(d, "")
}

func (s *Store) checkFrame(m *pack.Manifest, f *os.File, i int, buf []byte) error {
	frame, err := m.ReadFrame(f, i)
	if err == nil {
		_, err = m.DecodeChunk(i, frame, buf)
	}
	if err != nil {
		c := m.Chunks[i]
		return fmt.Errorf("%w: frame %d of pack %s, bytes %d to %d: %w", ErrDamaged, i,
			s.blobPath(m.Pack.Hex()), c.Offset, c.Offset+int64(c.Length)-1, err)
	}
	return nil
}

func (s *Store) check(ctx context.Context, d inventory.Digest, look func(*pack.Manifest, *os.File) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := s.Info(d)
	if err != nil {
		return fmt.Errorf("check image %s: %w", d.Short(), err)
	}
	m, err := s.manifest(info)
	if err == nil {
		var f *os.File
		if f, err = s.root.Open("blobs/" + info.Pack.Hex()); err != nil {
			err = fmt.Errorf("%w: pack %s cannot be opened: %w", ErrDamaged, s.blobPath(info.Pack.Hex()), err)
		} else {
			err = look(m, f)
			f.Close()
		}
	}
	if errors.Is(err, ErrDamaged) {
		// The image may have been mended or removed while we looked.
		if now, e := s.Info(d); e == nil && now.Pack == info.Pack && now.Manifest == info.Manifest {
			err = errors.Join(err, s.mark(d, DamageOf(err)))
		}
	}
	if err != nil {
		return fmt.Errorf("check image %s: %w", d.Short(), err)
	}
	return nil
}

// mark sets or clears the damage of an image, on disk first.
func (s *Store) mark(d inventory.Digest, damaged string) error {
	s.change.Lock()
	info, err := s.Info(d)
	if err != nil || info.Damaged == damaged {
		s.change.Unlock()
		return err
	}
	info.Damaged = damaged
	// On a disk that is full or read-only the mark still holds until the end of
	// this process: nobody starts on the image.
	err = s.writeRecord(info)
	s.put(info)
	s.change.Unlock()
	if damaged != "" {
		s.log.Error("image is damaged; add it again to mend it", "image", d, "reason", damaged)
	} else {
		s.log.Info("image is whole again", "image", d)
	}
	s.changed(d)
	if err != nil {
		return fmt.Errorf("record the state of image %s: %w", d.Short(), err)
	}
	return nil
}
