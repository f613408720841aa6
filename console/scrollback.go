package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// scrollback is what a machine said, in two files of which the older one goes when
// the newer is full. What was written survives the process.
type scrollback struct {
	root *os.Root
	name string
	most int64 // of both files

	file *os.File
	size int64
}

func (s *scrollback) path(old bool) string {
	if old {
		return s.name + ".old"
	}
	return s.name + ".log"
}

// Write appends.
func (s *scrollback) Write(p []byte) (int, error) {
	if s.file == nil {
		f, err := s.root.OpenFile(s.path(false), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return 0, fmt.Errorf("open a scrollback: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return 0, fmt.Errorf("open a scrollback: %w", err)
		}
		s.file, s.size = f, info.Size()
	}
	n, err := s.file.Write(p)
	if s.size += int64(n); err != nil {
		return n, fmt.Errorf("write a scrollback: %w", err)
	}
	if s.size >= s.most/2 {
		s.close()
		if err := s.root.Rename(s.path(false), s.path(true)); err != nil {
			return n, fmt.Errorf("turn over a scrollback: %w", err)
		}
	}
	return n, nil
}

func (s *scrollback) close() {
	if s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
}

// tail is the last n bytes; nothing where nothing is kept.
func (s *scrollback) tail(n int64) ([]byte, error) {
	var text []byte
	for _, old := range []bool{false, true} {
		part, err := s.end(s.path(old), n-int64(len(text)))
		if err != nil {
			return nil, err
		}
		text = append(part, text...)
	}
	return text, nil
}

func (s *scrollback) end(path string, n int64) ([]byte, error) {
	f, err := s.root.Open(path)
	if errors.Is(err, fs.ErrNotExist) || n <= 0 {
		if err == nil {
			_ = f.Close()
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a scrollback: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read a scrollback: %w", err)
	}
	text := make([]byte, min(n, info.Size()))
	read, err := f.ReadAt(text, info.Size()-int64(len(text)))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read a scrollback: %w", err)
	}
	return text[:read], nil
}

// forget removes scrollbacks that nobody has written to for so long.
func forget(root *os.Root, age time.Duration, now time.Time) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("list scrollbacks: %w", err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("list scrollbacks: %w", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && now.Sub(info.ModTime()) > age {
			if err := root.Remove(e.Name()); err != nil {
				return fmt.Errorf("forget a scrollback: %w", err)
			}
		}
	}
	return nil
}
