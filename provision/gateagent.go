package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"recast/inventory"
)

// gateOf is the gate of a generation for a machine that boots so, nil where it has
// none. What is no partition or file of its image is an error.
func (e *Engine) gateOf(gen inventory.Generation, firmware inventory.Firmware) (*Gate, error) {
	r := gen.Resolved
	if !r.Every.Gated() || r.Gate == nil {
		return nil, nil
	}
	img, err := e.Images.Reader(r.Image.Digest)
	if err != nil {
		return nil, fmt.Errorf("open the image: %w", err)
	}
	defer img.Close()
	g, names := &Gate{Gate: *r.Gate}, r.Image.Immutable
	restores := g.OnMismatch == inventory.MismatchRestore
	if restores {
		if names, err = img.Manifest.Layout.Others(r.Image.State); err != nil {
			return nil, fmt.Errorf("state of image %s: %w", r.Image.Digest.Short(), err)
		}
	}
	if len(r.Image.Verity) > 0 {
		info, err := e.Images.Info(r.Image.Digest)
		if err == nil {
			g.Verity, err = verityOf(r.Image, img.Numbers, info.Verity)
		}
		if err != nil {
			return nil, fmt.Errorf("verity of image %s: %w", r.Image.Digest.Short(), err)
		}
		names = slices.Clone(names)
		for i := range g.Verity {
			v := &g.Verity[i]
			names = append(names, v.Tree)
			data, err := img.Manifest.Layout.Find(v.Data.Name)
			if err != nil {
				return nil, fmt.Errorf("verity of image %s: %w", r.Image.Digest.Short(), err)
			}
			v.Data.Start, v.Data.End = data.Start, data.End
		}
	}
	parts, err := img.Manifest.Layout.FindAll(names)
	if err != nil {
		return nil, fmt.Errorf("immutable of image %s: %w", r.Image.Digest.Short(), err)
	}
	for i, p := range parts {
		g.Regions = append(g.Regions, inventory.Region{Name: names[i], Start: p.Start, End: p.End})
	}
	switch {
	case len(g.Regions) == 0 && restores:
		return nil, fmt.Errorf("state of image %s leaves no partition to put back", r.Image.Digest.Short())
	case len(g.Regions) == 0:
		return nil, fmt.Errorf("image %s names no immutable partition", r.Image.Digest.Short())
	}
	if firmware == inventory.BIOS {
		if err := g.bootCode(img); err != nil {
			return nil, fmt.Errorf("read the boot code of image %s: %w", r.Image.Digest.Short(), err)
		}
	}
	if restores {
		g.RepairLimit = blockBytes(g.Regions)
	}
	if r.Image.Boot != nil {
		if g.Kernel, err = e.gateKernel(img, *r.Image.Boot, g.Regions); err != nil {
			return nil, fmt.Errorf("boot of image %s: %w", r.Image.Digest.Short(), err)
		}
	}
	return g, nil
}

// blockBytes are those of all blocks that the regions have a part of.
func blockBytes(list []inventory.Region) (n int64) {
	for _, r := range list {
		n += (r.End+inventory.GateBlock-1)/inventory.GateBlock - r.Start/inventory.GateBlock
	}
	return n * inventory.GateBlock
}

// noGate is gateOf for a plan, which asks for the same generation for each machine.
// What a machine boots by may not be known yet; a BIOS adds nothing that could be missing.
func (e *Engine) noGate() func(inventory.Generation) error {
	known := map[inventory.Digest]error{}
	return func(gen inventory.Generation) error {
		err, ok := known[gen.Digest]
		if !ok {
			_, err = e.gateOf(gen, inventory.UEFI)
			known[gen.Digest] = err
		}
		return err
	}
}

// withGate adds to a decision the gate of what will be on the disk, or is.
func (e *Engine) withGate(d DiskDecision, generation inventory.Digest, facts inventory.Facts) DiskDecision {
	if d.Verdict != DiskWrite && d.Verdict != DiskAdopt {
		return d
	}
	gen, err := e.generation(generation)
	if err != nil && d.Verdict == DiskAdopt {
		return d // one of another store: nothing is known of its gate
	}
	if err == nil {
		d.Gate, err = e.gateOf(gen, inventory.Firmware(facts.Boot.Mode))
	}
	if err != nil {
		return DiskDecision{Verdict: DiskRefuse, Reason: err.Error(), Disk: d.Disk, Holds: d.Holds}
	}
	return d
}

// gateAgent finds the machine whose present boot through its gate holds the token, and
// locks it.
func (e *Engine) gateAgent(token string) (*machine, bool) {
	m, ok := e.known(tokenMachine(token))
	if !ok {
		return nil, false
	}
	m.mu.Lock()
	if g := gated(m.state); g != nil && g.Claim != nil && sameToken(token, e.key.GateToken(e.Store.Epoch(), m.name, g)) {
		return m, true
	}
	m.mu.Unlock()
	return nil, false
}

func (e *Engine) gateLeaseLeft(g *Gate) int {
	return max(0, int(g.Claim.Until.Sub(e.Now()).Seconds()))
}

// gateInventory takes what the ramdisk saw; see Inventory.
func (e *Engine) gateInventory(ctx context.Context, m *machine, facts inventory.Facts) (inventory.Order, error) {
	g, seen := gated(m.state), m.state.Status.Gate
	if seen.Step == GateInspecting {
		facts = namedFacts(facts, m.name)
		if c, v := g.Claim, facts.SystemVendor; c.UUID != v.UUID || c.Serial != v.SerialNumber {
			return inventory.Order{}, errors.Join(refused("inventory: UUID %q serial %q is not what claimed %s", v.UUID, v.SerialNumber, m.name),
				e.suspect(ctx, m, "", Suspected{Reason: fmt.Sprintf("%s was claimed with UUID %q serial %q, its inventory says %q %q", m.name, c.UUID, c.Serial, v.UUID, v.SerialNumber)}))
		}
		ev := GateInspected{Facts: facts}
		ev.Foreign, ev.Cure = foreignDisk(g, m.name, facts)
		if err := e.handleLocked(ctx, m, ev); err != nil {
			return inventory.Order{}, err
		}
	}
	return e.gateOrder(ctx, m)
}

// gateOrder is what a boot through the gate shall do now. The lock is held.
func (e *Engine) gateOrder(ctx context.Context, m *machine) (inventory.Order, error) {
	st := m.state.Status
	switch seen := st.Gate; seen.Step {
	case GateProving, GateRepairing, GateLoading:
		kind := inventory.OrderGate
		switch seen.Step {
		case GateRepairing:
			kind = inventory.OrderRepair
		case GateLoading:
			kind = inventory.OrderKexec
		}
		left, err := e.renewGate(ctx, m)
		if err != nil {
			return inventory.Order{}, err
		}
		job, err := e.gateJob(m, inventory.JobKind(kind))
		return inventory.Order{Kind: kind, Job: job, LeaseSeconds: left}, err
	case GateInspecting:
		return inventory.Order{Kind: inventory.OrderWait, Reason: "send the inventory"}, nil
	case GateOff:
		if st.Hold != nil || m.state.Intent.Gate.Anew {
			return inventory.Order{Kind: inventory.OrderPowerOff, Reason: seen.Detail}, nil
		}
	case GateStopped:
		if st.Hold != nil || m.state.Intent.Gate.Anew {
			return inventory.Order{Kind: inventory.OrderWait, Reason: seen.Detail}, nil
		}
	case GatePassed:
		return inventory.Order{Kind: inventory.OrderLocal, Reason: "the disk is what was written"}, nil
	}
	return inventory.Order{Kind: inventory.OrderReboot, Reason: "through the gate again"}, nil
}

func (e *Engine) gateJob(m *machine, kind inventory.JobKind) (*inventory.Job, error) {
	g := m.state.Intent.Gate
	gen, err := e.generation(g.Generation)
	if err != nil {
		return nil, err
	}
	info, err := e.Images.Info(gen.Resolved.Image.Digest)
	if err != nil {
		return nil, fmt.Errorf("open the image: %w", err)
	}
	base, err := e.bootURL(g.Claim.Addr)
	if err != nil {
		return nil, err
	}
	var kernel *inventory.JobKernel
	if kind == inventory.JobKexec {
		kernel = consoled(*g.Kernel, e.Set().Machine(m.name))
	}
	limit, regions := g.RepairLimit, g.reads()
	if g.writesAll() {
		limit = blockBytes(regions)
		if kind == inventory.JobGate {
			limit = 0 // it will be written however much it is: nothing is fetched to count it
		}
	}
	var efi *inventory.EFIEntry
	if again := againProgram(&g.Gate); again != nil {
		efi = &inventory.EFIEntry{Label: inventory.BootLabel, Loader: efiLoader(gen.Resolved.Image.Arch), Second: true, Again: again}
	}
	return &inventory.Job{Kind: kind, Machine: m.name, Generation: g.Generation, Rendered: g.Rendered, Epoch: e.Store.Epoch(),
		Fence: int64(g.Boots), Attempt: g.Jobs, Disk: g.Disk, Regions: regions, Limit: limit, Kernel: kernel, EFI: efi, Proof: e.gateProof(regions, info.Digest),
		Quote: e.key.gateQuote(e.Store.Epoch(), m.state),
		Image: inventory.JobImage{Digest: info.Digest, Size: info.Size, Manifest: info.Manifest, Pack: info.Pack, URLs: []string{base + "/images"}}}, nil
}

// renewGate is renew for a boot through the gate.
func (e *Engine) renewGate(ctx context.Context, m *machine) (int, error) {
	now := e.Now()
	if m.state.Intent.Gate.Claim.Until.Sub(now) < LeaseTime*2/3 {
		if err := e.handleLocked(ctx, m, GateRenewed{Until: now.Add(LeaseTime)}); err != nil {
			return e.gateLeaseLeft(m.state.Intent.Gate), err
		}
	}
	return e.gateLeaseLeft(m.state.Intent.Gate), nil
}

// gateReport takes the word of a boot through the gate; see Report.
func (e *Engine) gateReport(ctx context.Context, m *machine, r inventory.Report) (inventory.ReportReply, error) {
	g := m.state.Intent.Gate
	r.Error, r.BootOrder, r.Unguarded = clip(r.Error, 4*maxWord), clip(r.BootOrder, 4*maxWord), clip(r.Unguarded, 2*maxWord)
	if r.Fence != int64(g.Boots) || r.Attempt != g.Jobs || r.BootID != g.Claim.BootID {
		return inventory.ReportReply{Abort: true, Reason: "it is about another boot or job"}, nil
	}
	if v := r.Verdict; v != nil {
		v.Table = clip(v.Table, maxWord)
	}
	ev := GateReported{Epoch: e.Store.Epoch()}
	if v := r.Verdict; v != nil && v.Matches() { // nothing else is signed
		epoch := e.Store.Epoch()
		ev.Measured = e.measured(m.state, r, e.key.GateNonce(epoch, m.name, g, g.Boots-1), e.key.gateQuote(epoch, m.state), g.Generation)
	}
	r.Quote, ev.Report = nil, r
	if err := e.judge(ctx, m, ev); err != nil {
		return inventory.ReportReply{Abort: true, Reason: err.Error()}, err
	}
	if step := m.state.Status.Gate.Step; r.Step != inventory.AgentDone && r.Step != inventory.AgentFailed && !step.working() {
		return inventory.ReportReply{Abort: true, Reason: "the job has ended"}, nil
	}
	left, err := e.renewGate(ctx, m)
	return inventory.ReportReply{LeaseSeconds: left}, err
}

// judge lets machines that may have to be repaired come one after the other, so that
// each is counted before the next one is.
func (e *Engine) judge(ctx context.Context, m *machine, ev GateReported) error {
	if v := ev.Report.Verdict; v != nil && !v.Matches() && m.state.Status.Gate.Step == GateProving {
		e.gateMu.Lock()
		defer e.gateMu.Unlock()
		ev.NoRepair, ev.Cure = e.repairBudget(m.name)
	}
	return e.handleLocked(ctx, m, ev)
}

func (e *Engine) repairBudget(name string) (why, cure string) {
	q := budgetQuestion{Machine: e.Set().Machine(name)}
	if m, ok := e.known(name); ok {
		q.Restores = restores(m.state)
		if g := gated(m.state); g != nil {
			q.Said = g.Consent != nil
		}
	}
	var members []string
	e.mu.RLock()
	q.Frozen = e.frozen.Reason
	if w, ok := e.wanted[name]; ok {
		q.Group, q.Failures = w.Group.Name, w.Group.Rollout.MaxFailures
		for other, o := range e.wanted {
			if o.Group.Name == q.Group {
				members = append(members, other)
			}
		}
	}
	e.mu.RUnlock()
	q.Members = len(members)
	hour := e.Now().Add(-time.Hour)
	for _, other := range members {
		if m, ok := e.known(other); ok && other != name {
			if s := m.committed(); !restores(s) && s.Status.Gate.repairedSince(hour) > 0 {
				q.Repaired++
			}
		}
	}
	return repairBudget(q)
}
