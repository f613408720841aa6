package main

import (
	"context"
	"io"
	"os"

	"golang.org/x/term"
)

// interruptible reads until the context ends: a read from a terminal or a pipe
// may last for ever, and ctrl-C has to end it.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(b []byte) (int, error) {
	own := make([]byte, len(b)) // the read may outlive this call
	n, err := untilDone(i.ctx, func() (int, error) { return i.r.Read(own) })
	return copy(b, own[:n]), err
}

// readPassword reads a line without echo, and gives the echo back in any case.
func readPassword(ctx context.Context, f *os.File) ([]byte, error) {
	fd := int(f.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	raw, err := untilDone(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		_ = term.Restore(fd, before)
	}
	return raw, err
}

// untilDone leaves f to the end of the process where the context ends first.
func untilDone[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() { v, err := f(); done <- result{v, err} }()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}
