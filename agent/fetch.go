package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"recast/inventory"
	"recast/pack"
)

const (
	// maxRange and maxGap bound one Range request: large enough that requests
	// cost nothing, small enough that four of them share the work evenly.
	maxRange = 8 << 20
	maxGap   = 16 << 10
	// stallAfter is how long a transfer may stand still before it is tried anew.
	stallAfter = 30 * time.Second
)

// BadFrameError says that the bytes of an image were not what the manifest says
// twice in a row; Frame -1 stands for the manifest itself.
type BadFrameError struct {
	Frame int
	Err   error
}

func (e *BadFrameError) Error() string {
	if e.Frame < 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("frame %d was wrong twice: %v", e.Frame, e.Err)
}

func (e *BadFrameError) Unwrap() error { return e.Err }

// source fetches the artefacts of one image by digest. Its URLs are tried in
// turn; plain HTTP will do, since every byte is checked.
type source struct {
	http  *http.Client
	image inventory.JobImage
	// wait is the pause after the n-th failure in a row.
	wait func(n int) time.Duration
	// alive ends the retries: the lease. So do tries, unless they are 0.
	alive func() error
	tries int
	// fetched counts the bytes that came over the wire.
	fetched func(n int64)
}

// ImageHTTP is a client for image bytes: several connections to one server and
// no limit on a whole transfer, which stallAfter watches instead.
func ImageHTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   8,
		ResponseHeaderTimeout: stallAfter,
		DisableCompression:    true, // the digest is over the bytes as stored
		IdleConnTimeout:       60 * time.Second,
	}}
}

// open asks the try-th URL for n bytes of a file from off; n < 0 asks for all.
func (s *source) open(ctx context.Context, try int, file inventory.Digest, off, n int64) (io.ReadCloser, error) {
	if len(s.image.URLs) == 0 {
		return nil, errors.New("the job names no URL to fetch the image from")
	}
	base := s.image.URLs[try%len(s.image.URLs)]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/"+file.Hex(), nil)
	if err != nil {
		return nil, fmt.Errorf("fetch image: %w", err)
	}
	if n >= 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case n < 0 && resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	case n >= 0 && resp.StatusCode == http.StatusPartialContent &&
		strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", off)):
		return resp.Body, nil
	case n >= 0 && off == 0 && resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil, fmt.Errorf("fetch image: %s does not serve ranges (status %d)", base, resp.StatusCode)
	}
	return nil, &StatusError{Path: base + "/" + file.Short(), Code: resp.StatusCode, Reason: reason(resp.Body)}
}

// again decides about the next try after the n-th failure in a row: an error
// when there is none. A refusal counts only after every URL has refused twice.
func (s *source) again(ctx context.Context, n int, cause error) error {
	if final(cause) && n >= 2*len(s.image.URLs) || len(s.image.URLs) == 0 {
		return cause
	}
	if s.tries > 0 && n >= s.tries {
		return cause
	}
	if err := s.alive(); err != nil {
		return fmt.Errorf("%w; last error: %w", err, cause)
	}
	if err := sleep(ctx, s.wait(n)); err != nil {
		return context.Cause(ctx)
	}
	return nil
}

// manifest fetches, checks and parses the manifest.
func (s *source) manifest(ctx context.Context) (m *pack.Manifest, err error) {
	return m, s.file(ctx, "manifest", s.image.Manifest, pack.MaxManifestSize, func(b []byte) error {
		if m, err = pack.ParseManifest(b); err != nil {
			return err
		}
		if m.Digest.String() != s.image.Digest.String() || m.Pack.String() != s.image.Pack.String() || m.Size != s.image.Size {
			return fmt.Errorf("it describes image %s of %d bytes, the job is for %s of %d", m.Digest, m.Size, s.image.Digest, s.image.Size)
		}
		return nil
	})
}

// index fetches, checks and parses the index of the image's blocks.
func (s *source) index(ctx context.Context, m *pack.Manifest) (x *pack.Index, err error) {
	return x, s.file(ctx, "index", s.image.Index, pack.MaxIndexSize(m), func(b []byte) error {
		x, err = pack.ParseIndex(b, m)
		return err
	})
}

// difference fetches, checks and parses the list of a difference.
func (s *source) difference(ctx context.Context, to *pack.Index) (d *pack.Difference, err error) {
	want := s.image.Difference
	return d, s.file(ctx, "difference", want.List, pack.MaxManifestSize, func(b []byte) error {
		if d, err = pack.ParseDifference(b, to); err != nil {
			return err
		}
		if d.Pack.String() != want.Pack.String() {
			return fmt.Errorf("its pack is %s, the job's %s", d.Pack, want.Pack)
		}
		return nil
	})
}

// file fetches a whole file and has it parsed if it is the wanted one.
func (s *source) file(ctx context.Context, what string, file inventory.Digest, limit int64, parse func(b []byte) error) error {
	bad := 0
	for try := 0; ; try++ {
		b, err := s.whole(ctx, try, file, limit)
		if err == nil {
			if have := inventory.DigestOf(b); have != file {
				err = fmt.Errorf("digest %s instead of %s", have, file)
			} else {
				err = parse(b)
			}
			if err == nil {
				return nil
			}
			if bad++; bad == 2 {
				return &BadFrameError{Frame: -1, Err: fmt.Errorf("the %s was wrong twice: %w", what, err)}
			}
		}
		if err := s.again(ctx, try+1, err); err != nil {
			return fmt.Errorf("fetch %s %s: %w", what, file.Short(), err)
		}
	}
}

func (s *source) whole(ctx context.Context, try int, file inventory.Digest, limit int64) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(stallAfter, cancel)
	defer watchdog.Stop()
	body, err := s.open(ctx, try, file, 0, -1)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(lively{body, watchdog}, limit+1))
	s.fetched(int64(len(b)))
	return b, err
}

// lively puts the watchdog off with every byte that comes.
type lively struct {
	io.Reader
	watchdog *time.Timer
}

func (r lively) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.watchdog.Reset(stallAfter)
	return n, err
}

// frames are those of one pack: the image's or a difference's.
type frames struct {
	pack   inventory.Digest
	list   []pack.Chunk
	decode func(i int, frame, dst []byte) ([]byte, error)
}

func imageFrames(m *pack.Manifest) frames {
	return frames{inventory.NewDigest(m.Pack), m.Chunks, m.DecodeChunk}
}

func differenceFrames(d *pack.Difference) frames {
	return frames{inventory.NewDigest(d.Pack), d.Frames, d.Decode}
}

// span is a run of frames that come with one request. Frames between first and
// last that are not wanted are read and dropped.
type span []int

// spans groups the wanted frames (ascending) into requests.
func spans(list []pack.Chunk, wanted []int) []span {
	var out []span
	for k, i := range wanted {
		if k > 0 {
			s := &out[len(out)-1]
			begin, prev := list[(*s)[0]].Offset, list[wanted[k-1]]
			end := prev.Offset + int64(prev.Length)
			if list[i].Offset-end <= maxGap && list[i].Offset+int64(list[i].Length)-begin <= maxRange {
				*s = append(*s, i)
				continue
			}
		}
		out = append(out, span{i})
	}
	return out
}

// span fetches the frames of sp and hands what is in them, checked, to each, in
// order. What was handed over is not fetched again after an interruption. The
// slice that each gets is used again.
func (s *source) span(ctx context.Context, f frames, sp span, buf *frameBuffer, each func(i int, data []byte) error) error {
	todo := sp
	var stop error // an error of each: not the network's
	badFrame, bad, failures := -1, 0, 0
	for try := 0; len(todo) > 0; try++ {
		before := len(todo)
		err := s.stream(ctx, try, f, todo, buf, func(i int, data []byte) error {
			if stop = each(i, data); stop != nil {
				return stop
			}
			todo = todo[1:]
			return nil
		})
		switch {
		case err == nil:
			continue
		case stop != nil:
			return stop
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if len(todo) < before {
			failures = 0
		}
		if errors.Is(err, pack.ErrBadFrame) {
			if badFrame != todo[0] {
				badFrame, bad = todo[0], 0
			}
			if bad++; bad == 2 {
				return &BadFrameError{Frame: badFrame, Err: err}
			}
		}
		failures++
		if err := s.again(ctx, failures, err); err != nil {
			return fmt.Errorf("fetch frame %d of pack %s: %w", todo[0], f.pack.Short(), err)
		}
	}
	return nil
}

// chunk fetches one chunk.
func (s *source) chunk(ctx context.Context, m *pack.Manifest, i int) ([]byte, error) {
	var out []byte
	err := s.span(ctx, imageFrames(m), span{i}, &frameBuffer{}, func(_ int, data []byte) error {
		out = append(out, data...)
		return nil
	})
	return out, err
}

type frameBuffer struct{ frame, chunk []byte }

// stream makes one request for the frames of wanted and reads it to its end or
// first trouble.
func (s *source) stream(ctx context.Context, try int, f frames, wanted []int, buf *frameBuffer, each func(i int, data []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A peer that goes silent must not hold a worker until the lease is gone.
	watchdog := time.AfterFunc(stallAfter, cancel)
	defer watchdog.Stop()

	at := f.list[wanted[0]].Offset
	last := f.list[wanted[len(wanted)-1]]
	body, err := s.open(ctx, try, f.pack, at, last.Offset+int64(last.Length)-at)
	if err != nil {
		return err
	}
	defer body.Close()
	if buf.frame == nil {
		buf.frame, buf.chunk = make([]byte, pack.MaxFrameSize), make([]byte, 0, pack.ChunkSize)
	}
	for _, i := range wanted {
		c := f.list[i]
		if _, err := io.CopyN(io.Discard, body, c.Offset-at); err != nil {
			return fmt.Errorf("read frame %d: %w", i, err)
		}
		n, err := io.ReadFull(body, buf.frame[:c.Length])
		s.fetched(int64(n))
		if err != nil {
			return fmt.Errorf("read frame %d: %w", i, err)
		}
		at = c.Offset + int64(c.Length)
		watchdog.Stop() // a slow disk is not a slow network
		data, err := f.decode(i, buf.frame[:c.Length], buf.chunk)
		if err != nil {
			return err
		}
		if err := each(i, data); err != nil {
			return err
		}
		watchdog.Reset(stallAfter)
	}
	return nil
}
