package provision

import (
	"context"
	"errors"
	"fmt"
	"time"

	"recast/image"
	"recast/inventory"
)

const (
	// differenceWait is how long a plan waits for what it needs: about the time of
	// five GiB that changed. What is not ready then is built on for its machines.
	differenceWait = time.Minute
	// differenceTime ends a build that hangs.
	differenceTime = time.Hour
)

// between is one thing that a plan needs of the image store: the difference, or
// with from "" only the index of to.
type between struct{ from, to inventory.Digest }

// needs are what the entries of a plan need and what is not here yet.
func (e *Engine) needs(p Plan) map[between]error {
	need := map[between]error{}
	for i := range p.Entries {
		if en := &p.Entries[i]; en.look {
			if b := (between{en.FromImage, en.toImage}); !e.ready(b) {
				need[b] = nil
			}
		}
	}
	return need
}

func (e *Engine) ready(b between) bool {
	if to, err := e.Images.Info(b.to); err != nil || to.Damaged != "" {
		return true // nobody starts on it
	}
	if b.from == "" {
		info, err := e.Images.Info(b.to)
		return err == nil && info.Index != ""
	}
	if _, err := e.Images.Info(b.from); err != nil {
		return e.ready(between{"", b.to})
	}
	_, ok := e.Images.Built(b.from, b.to)
	return ok
}

// measure builds what a plan needs, and says then what its machines take. It
// holds no lock: nobody who boots waits for it.
func (e *Engine) measure(ctx context.Context, p *Plan) {
	need := e.needs(*p)
	if len(need) == 0 {
		return
	}
	patience, cancel := context.WithTimeout(ctx, differenceWait)
	defer cancel()
	waits := map[between]func(context.Context) error{}
	for b := range need {
		waits[b] = e.prepare(ctx, b)
	}
	for b, wait := range waits {
		need[b] = wait(patience)
	}
	for i := range p.Entries {
		en := &p.Entries[i]
		err, ours := need[between{en.FromImage, en.toImage}]
		if !en.look || !ours {
			continue
		}
		facts, _ := e.imageFacts(en.toImage)
		en.moves(facts, e.difference)
		if err != nil && en.FromImage != "" {
			en.Whole = err.Error()
		}
	}
}

var errBuilding = errors.New("its difference is still being built: machines that start once it is there fetch less")

// prepare begins to build something, and gives the wait for it, as long as a
// patience lasts. Until the wait is over the build ends with ctx; past it, it goes on.
func (e *Engine) prepare(ctx context.Context, b between) (wait func(patience context.Context) error) {
	background := e.background()
	build, cancel := context.WithTimeout(background, differenceTime)
	stop := context.AfterFunc(ctx, cancel)
	done := make(chan error, 1)
	e.spawn(func() {
		defer cancel()
		err := e.build(build, b)
		if err != nil && build.Err() == nil {
			e.Log.Warn("images are moved whole", "err", err)
		}
		done <- err
	})
	return func(patience context.Context) error {
		select {
		case err := <-done:
			return err
		case <-patience.Done():
			if stop() {
				return errBuilding
			}
			return context.Cause(ctx) // the caller hung up
		case <-background.Done():
			return context.Cause(background)
		}
	}
}

func (e *Engine) build(ctx context.Context, b between) error {
	if _, err := e.Images.Info(b.from); b.from != "" && err == nil {
		_, err := e.Images.Difference(ctx, b.from, b.to)
		return err
	}
	_, err := e.Images.Index(ctx, b.to)
	return err
}

// difference that is here; else why all of the image is fetched.
func (e *Engine) difference(from, to inventory.Digest) (image.Difference, string) {
	if d, ok := e.Images.Built(from, to); ok {
		return d, ""
	}
	if _, err := e.Images.Info(from); err != nil {
		return image.Difference{}, fmt.Sprintf("image %s, which its disk holds, is not here any more", from.Short())
	}
	return image.Difference{}, errBuilding.Error()
}

// imageOf a kept generation; "" where it is not kept.
func (e *Engine) imageOf(generation inventory.Digest) inventory.Digest {
	gen, err := e.generation(generation)
	if err != nil {
		return ""
	}
	return gen.Resolved.Image.Digest
}

// jobImage says where the bytes of a write are: with what tells the agent what it
// need not fetch, where the disk may hold any of them and that is here. What is
// missing is built once for those that come later: nobody waits with a machine.
func (e *Engine) jobImage(info image.Info, s State, base string) inventory.JobImage {
	out := inventory.JobImage{Digest: info.Digest, Size: info.Size, Manifest: info.Manifest, Pack: info.Pack,
		URLs: []string{base + "/images"}}
	st := s.Status
	if !worthALook(s.Intent.Write.Holds, st) {
		return out
	}
	b := between{st.DiskImage, info.Digest}
	if !e.ready(b) {
		e.mu.Lock()
		first := !e.missing[b]
		e.missing[b] = true
		e.mu.Unlock()
		if first {
			e.prepare(context.Background(), b)
		}
	}
	if out.Index = info.Index; out.Index == "" {
		return out
	}
	d, ok := e.Images.Built(b.from, b.to)
	from, err := e.Images.Info(b.from)
	if ok && err == nil && d.List != "" {
		out.Difference = &inventory.JobDifference{List: d.List, Pack: d.Pack, From: d.From, FromSize: from.Size}
	}
	return out
}
