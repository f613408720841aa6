package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"sync/atomic"

	"recast/inventory"
	"recast/pack"
)

// Gate compares the regions of a job with the image, and the partition table by its
// meaning. With JobRepair it then writes the blocks that differ, no others, and
// compares again; from the first of them until all are read back the disk does not
// boot. Result.Verdict is what was read at the end: it is no error that something
// differs.
func Gate(ctx context.Context, w Work) (Result, error) {
	if k := w.Job.Kind; k != inventory.JobGate && k != inventory.JobRepair {
		return Result{}, fmt.Errorf("prove the disk: the job is to %q", k)
	}
	if w.HTTP == nil {
		w.HTTP = ImageHTTP()
		defer w.HTTP.CloseIdleConnections()
	}
	g := &prover{writer: newWriter(w)}
	if g.kept == nil {
		g.kept = &kept{}
	}
	g.kept.begin(w.Job.Image.Manifest)
	g.source = source{http: w.HTTP, image: w.Job.Image, wait: g.wait, alive: w.Lease.Check,
		fetched: func(n int64) { g.Progress.fetched.Add(n) }}
	steps := []workStep{
		{"check the disk", g.identify},
		{"read the boot order", g.refuse},
		{"read what belongs there", g.describe},
		{"compare the regions", g.prove},
	}
	if w.Job.Kind == inventory.JobRepair {
		steps = append(steps, workStep{"write the blocks that differ", g.repair}, workStep{"compare the regions again", g.prove}, workStep{"put the partition table in force", g.resume})
	}
	return g.run(ctx, steps)
}

// prover is the state of one Gate between its steps.
type prover struct {
	*writer
	layout *pack.Layout // of the image
	pieces []gatePiece
	blocks int64 // of all pieces
	// away: the image's bytes could not be fetched, and nothing waits for them any more.
	away atomic.Bool
}

// gatePiece is a piece of a region, and what was last read there.
type gatePiece struct {
	pack.Piece
	region int
	sum    pack.Digest // of what belongs there, where summed
	summed bool
	read   pack.Digest
	want   pack.Digest
	known  bool  // want is, and blocks are all
	blocks int64 // that differ
	first  int64 // where, in the image
}

// describe takes what belongs on the disk from the job, which came from the server itself;
// where it does not stand there, from the manifest.
func (g *prover) describe(ctx context.Context) error {
	if g.Job.Proof != nil {
		return g.proof()
	}
	if err := g.fetchManifest(ctx); err != nil {
		return err
	}
	m := g.manifest
	g.layout = &m.Layout
	for i, r := range g.Job.Regions {
		if r.Start < 0 || r.End <= r.Start || r.End > m.Size || r.End > g.size {
			return fmt.Errorf("region %q from byte %d to %d does not lie in the image and on the disk", printable(r.Name), r.Start, r.End)
		}
		for _, p := range m.Pieces(r.Start, r.End) {
			g.pieces = append(g.pieces, gatePiece{Piece: p, region: i})
			g.blocks += blocksOf(p)
		}
	}
	if len(g.pieces) == 0 {
		return errors.New("the job names no region")
	}
	return nil
}

// proofTries is how often bytes are asked for that a verdict can do without.
const proofTries = 4

func (g *prover) proof() error {
	p, err := pack.ParseProof(g.Job.Proof)
	if err != nil {
		return err
	}
	if p.Image.String() != g.Job.Image.Digest.String() || p.Size != g.Job.Image.Size || p.Size > g.size || len(p.Regions) != len(g.Job.Regions) {
		return fmt.Errorf("the job's sums are of image %s, %d bytes, %d regions, the job of %s, %d, %d; the disk has %d bytes", p.Image, p.Size, len(p.Regions), g.Job.Image.Digest, g.Job.Image.Size, len(g.Job.Regions), g.size)
	}
	for i, r := range g.Job.Regions {
		if p.Regions[i] != [2]int64{r.Start, r.End} {
			return fmt.Errorf("the job's sums are not of region %q", printable(r.Name))
		}
	}
	g.layout = &p.Layout
	for _, q := range p.Pieces() {
		g.pieces = append(g.pieces, gatePiece{Piece: q.Piece, region: q.Region, sum: q.Sum, summed: true})
		g.blocks += blocksOf(q.Piece)
	}
	if len(g.pieces) == 0 {
		return errors.New("the job names no region")
	}
	if g.Job.Kind == inventory.JobGate {
		g.source.tries = proofTries
	}
	return nil
}

// chunk fetches bytes of the image, once, and the manifest before the first.
func (g *prover) chunk(ctx context.Context, i int) ([]byte, error) {
	if err := g.fetchManifest(ctx); err != nil {
		return nil, err
	}
	data := g.kept.chunk(i)
	if data != nil {
		return data, nil
	}
	data, err := g.source.chunk(ctx, g.manifest, i)
	if err == nil {
		g.kept.keep(i, data)
	}
	return data, err
}

func (g *prover) fetchManifest(ctx context.Context) (err error) {
	g.kept.mu.Lock()
	defer g.kept.mu.Unlock()
	if g.manifest != nil {
		return nil
	}
	if g.kept.manifest == nil {
		g.kept.manifest, err = g.source.manifest(ctx)
	}
	g.manifest = g.kept.manifest
	return err
}

// blocksOf a piece, those that it has a part of included.
func blocksOf(p pack.Piece) int64 {
	return (p.End+inventory.GateBlock-1)/inventory.GateBlock - p.Start/inventory.GateBlock
}

// prove reads every piece from the disk, on all workers.
func (g *prover) prove(ctx context.Context) error {
	table, suspended, err := g.table()
	if err != nil {
		return err
	}
	var total int64
	for _, p := range g.pieces {
		total += p.End - p.Start
	}
	g.Progress.begin(inventory.AgentProving, total)
	var differs atomic.Int64 // bytes
	if err := g.each(ctx, func(ctx context.Context, p *gatePiece, buf []byte) error { return g.look(ctx, p, buf, &differs) }); err != nil {
		return err
	}
	g.result.Verdict = g.verdict(table)
	g.result.Verdict.Suspended = suspended
	return nil
}

// each calls do for every piece, on all workers, each with a buffer of its own; the
// first error ends it.
func (g *prover) each(ctx context.Context, do func(ctx context.Context, p *gatePiece, buf []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		next atomic.Int64
	)
	for range g.Workers {
		wg.Go(func() {
			buf := make([]byte, pack.ChunkSize)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(g.pieces) {
					return
				}
				if err := do(ctx, &g.pieces[i], buf); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// table compares the partition table by its meaning, and tells whether it is
// suspended; one that cannot be read is another one.
func (g *prover) table() (differs string, suspended bool, err error) {
	first, err := g.first()
	if err != nil {
		return "", false, err
	}
	first, suspended = pack.Resumed(first)
	layout, _, err := pack.ParseLayout(first, g.size)
	if err != nil {
		return fmt.Sprintf("it cannot be read: %v", err), false, nil
	}
	return g.layout.Differs(&layout), suspended, nil
}

func (g *prover) first() ([]byte, error) {
	first := make([]byte, min(g.size, MiB))
	if _, err := g.Disk.ReadBack(first, 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	return first, nil
}

// look reads one piece. The image's own bytes are fetched only where the piece is not
// right, or where it is a part of a chunk, which has no sum of its own; and no more
// once more differs than may be written, none where that is nothing and the sum is known.
// A repair that may write all need not know how much it will be: each block of what is
// not right counts.
func (g *prover) look(ctx context.Context, p *gatePiece, buf []byte, differs *atomic.Int64) error {
	have := buf[:p.End-p.Start]
	if _, err := g.Disk.ReadBack(have, p.Start); err != nil {
		return fmt.Errorf("read at byte %d: %w", p.Start, err)
	}
	p.read, p.blocks = sha256.Sum256(have), 0
	switch {
	case p.summed:
		p.want, p.known = p.sum, true
	case p.Whole:
		p.want, p.known = g.manifest.Chunks[p.Chunk].Sum, true
	}
	if !p.known || p.read != p.want {
		if p.known && g.Job.Kind == inventory.JobRepair && g.Job.Limit >= g.blocks*inventory.GateBlock {
			p.blocks, p.first = blocksOf(p.Piece), p.Start
		} else if differs.Load() > g.Job.Limit || p.known && g.Job.Limit == 0 || p.summed && g.away.Load() {
			if p.known {
				p.blocks, p.first, p.known = 1, p.Start, false
				differs.Add(inventory.GateBlock)
			}
		} else {
			data, err := g.chunk(ctx, p.Chunk)
			if err != nil && p.summed && g.Job.Kind == inventory.JobGate && ctx.Err() == nil && g.Lease.Check() == nil {
				// That it differs is known without a byte of the image.
				if !g.away.Swap(true) {
					g.Log("which blocks differ is not known: %v", err)
				}
				p.blocks, p.first, p.known = 1, p.Start, false
				return nil
			}
			if err != nil {
				return err
			}
			off := g.manifest.ChunkOffset(p.Chunk)
			want := data[p.Start-off : p.End-off]
			p.want, p.known = sha256.Sum256(want), true
			_ = gateBlocks(p.Start, have, want, func(at int64, _ []byte) error {
				if p.blocks == 0 {
					p.first = at
				}
				p.blocks++
				return nil
			})
			differs.Add(p.blocks * inventory.GateBlock)
		}
	}
	g.Progress.done.Add(int64(len(have)))
	return nil
}

// gateBlocks calls each for every block that differs, with where it begins, and the
// bytes that belong there. Blocks are counted from the image's beginning; those at the
// ends of a piece may be shorter.
func gateBlocks(start int64, have, want []byte, each func(at int64, want []byte) error) error {
	for k := 0; k < len(have); {
		n := min(len(have)-k, inventory.GateBlock-int((start+int64(k))%inventory.GateBlock))
		if !bytes.Equal(have[k:k+n], want[k:k+n]) {
			if err := each(start+int64(k), want[k:k+n]); err != nil {
				return err
			}
		}
		k += n
	}
	return nil
}

func (g *prover) verdict(table string) *inventory.Verdict {
	v := &inventory.Verdict{Table: table}
	for i, r := range g.Job.Regions {
		out := inventory.RegionVerdict{Name: r.Name}
		read, want, known := sha256.New(), sha256.New(), true
		for _, p := range g.pieces {
			if p.region != i {
				continue
			}
			read.Write(p.read[:])
			want.Write(p.want[:])
			known = known && p.known
			if p.blocks > 0 && out.Blocks == 0 {
				out.First = p.first - r.Start
			}
			out.Blocks += p.blocks
		}
		if out.Read = gateSum(read); known {
			out.Want = gateSum(want)
		}
		v.Regions = append(v.Regions, out)
	}
	return v
}

func gateSum(h hash.Hash) inventory.Digest {
	return inventory.NewDigest([sha256.Size]byte(h.Sum(nil)))
}

// repair writes the blocks that differ. A disk whose table means something else is
// not written: what stands at these places may be somebody's state. Until all is read
// back firmware finds no table, as in a write: half of a file system is none.
func (g *prover) repair(ctx context.Context) error {
	v := *g.result.Verdict
	switch {
	case v.Matches():
		return nil
	case v.Table != "":
		return fmt.Errorf("the partition table is another one: %s", v.Table)
	case v.Blocks()*inventory.GateBlock > g.Job.Limit:
		return fmt.Errorf("%d blocks or more differ, and at most %d bytes may be written", v.Blocks(), g.Job.Limit)
	}
	if err := g.identify(ctx); err != nil { // the comparison may have taken minutes
		return err
	}
	if err := g.mark(ctx, true); err != nil {
		return err
	}
	g.Progress.begin(inventory.AgentRepairing, v.Blocks()*inventory.GateBlock)
	var written atomic.Int64
	err := g.each(ctx, func(ctx context.Context, p *gatePiece, have []byte) error {
		if p.blocks == 0 {
			return nil
		}
		data, err := g.chunk(ctx, p.Chunk)
		if err != nil {
			return err
		}
		have = have[:p.End-p.Start]
		if _, err := g.Disk.ReadAt(have, p.Start); err != nil {
			return fmt.Errorf("read at byte %d: %w", p.Start, err)
		}
		off := g.manifest.ChunkOffset(p.Chunk)
		err = gateBlocks(p.Start, have, data[p.Start-off:p.End-off], func(at int64, want []byte) error {
			if written.Add(inventory.GateBlock) > g.Job.Limit {
				return fmt.Errorf("more than %d bytes would be written", g.Job.Limit)
			}
			return g.writeAt(ctx, want, at)
		})
		g.Progress.done.Add(p.blocks * inventory.GateBlock)
		return err
	})
	if err != nil {
		return err
	}
	return g.Disk.Flush()
}

// resume puts the table in force, where all that it names is right.
func (g *prover) resume(ctx context.Context) error {
	v := g.result.Verdict
	if !v.Suspended || v.Table != "" || v.Blocks() > 0 {
		return nil
	}
	if err := g.mark(ctx, false); err != nil {
		return err
	}
	first, err := g.first()
	if err != nil {
		return err
	}
	if _, v.Suspended = pack.Resumed(first); v.Suspended {
		return errors.New("the disk gives back other bytes than were written")
	}
	return nil
}

// mark suspends the table, or resumes it: in the opposite order, so that the boot
// signature says first and last how it stands. A mark that is neither way, as of a
// backup that was lost, is left alone.
func (g *prover) mark(ctx context.Context, suspend bool) error {
	first, err := g.first()
	if err != nil {
		return err
	}
	marks, size := pack.Marks(first)
	if marks == nil {
		return errors.New("the partition table has no boot signature that could be taken from it: write the disk anew")
	}
	if !suspend {
		slices.Reverse(marks)
	}
	block := make([]byte, size)
	for _, m := range marks {
		at := m.At / int64(size) * int64(size)
		if at < 0 || at+int64(size) > g.size {
			continue
		}
		if _, err := g.Disk.ReadAt(block, at); err != nil {
			return fmt.Errorf("read at byte %d: %w", at, err)
		}
		from, to := m.Live, m.Suspended
		if !suspend {
			from, to = to, from
		}
		if here := block[m.At-at:]; bytes.HasPrefix(here, from) {
			copy(here, to)
			if err := g.guard(ctx); err != nil {
				return err
			}
			if _, err := g.Disk.WriteAt(block, at); err != nil {
				return fmt.Errorf("write at byte %d: %w", at, err)
			}
		}
		if err := g.Disk.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// startNext asks the firmware for the disk, so that the restart need not come by here
// again: OVMF takes minutes to give up a network that leaves it to its disk. Where it
// cannot, the server's next answer is the disk.
func startNext(vars Variables, log func(string, ...any)) {
	switch text, err := bootNext(vars, inventory.BootLabel); {
	case err != nil:
		log("the firmware takes no order for its next start: %v", err)
	case text != "":
		log("%s", text)
	}
}

// bootNext makes the firmware start our entry once, at the next start, whatever its
// order says; "" there is no entry of ours, or no firmware that has any.
func bootNext(vars Variables, label string) (string, error) {
	if vars == nil {
		return "", nil
	}
	ours, _, err := labelled(vars, label, anyOption)
	if err != nil || len(ours) == 0 {
		return "", err
	}
	want := binary.LittleEndian.AppendUint16(nil, ours[0])
	if err := vars.Set(bootNextName, bootVariable, want); err != nil {
		return "", fmt.Errorf("write BootNext: %w", err)
	}
	if have, err := vars.Get(bootNextName); err != nil || !bytes.Equal(have, want) {
		return "", fmt.Errorf("BootNext reads back as %x, not as %x (%v)", have, want, err)
	}
	return fmt.Sprintf("Boot%04X %q is next", ours[0], label), nil
}

const bootNextName = "BootNext-" + globalVariable
