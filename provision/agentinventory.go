package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"recast/image"
	"recast/inventory"
)

// Inventory takes what the ramdisk saw, decides about the disk, and answers
// with the first order. A write intent is durable before its job is given.
func (e *Engine) Inventory(ctx context.Context, token string, facts inventory.Facts) (inventory.Order, error) {
	if err := checkFacts(facts); err != nil {
		return inventory.Order{}, err
	}
	if m, ok := e.gateAgent(token); ok {
		defer m.mu.Unlock()
		return e.gateInventory(ctx, m, facts)
	}
	m, err := e.agent(token)
	if err != nil {
		return inventory.Order{}, err
	}
	m.mu.Unlock()
	// Both of two that started in one moment have claimed by now.
	twin := e.twin(m.name, facts.SystemVendor.UUID)
	if m, err = e.agent(token); err != nil {
		return inventory.Order{}, err
	}
	defer m.mu.Unlock()
	s := m.state
	facts = namedFacts(facts, m.name)
	if s.Status.Step == StepInspecting && Busy(s.Status.Phase) {
		if c, v := s.Intent.Claim, facts.SystemVendor; c.UUID != v.UUID || c.Serial != v.SerialNumber {
			return inventory.Order{}, errors.Join(refused("inventory: UUID %q serial %q is not what claimed %s", v.UUID, v.SerialNumber, m.name),
				e.suspect(ctx, m, "", Suspected{Reason: fmt.Sprintf("%s was claimed with UUID %q serial %q, its inventory says %q %q", m.name, c.UUID, c.Serial, v.UUID, v.SerialNumber)}))
		}
		if decl := e.Set().Machine(m.name); twin != "" && decl != nil {
			reason, cure := twins(decl, twin, e.declares(twin, facts.SystemVendor.UUID), facts.SystemVendor.UUID)
			return inventory.Order{}, errors.Join(refused("inventory: %s", reason), e.suspect(ctx, m, twin, Suspected{reason, cure}))
		}
		d, err := e.decideDisk(ctx, m.name, s, facts)
		if err != nil {
			return inventory.Order{}, err
		}
		if err := e.handleLocked(ctx, m, Inspected{Facts: facts, Decision: d, Declared: e.Set().Machine(m.name)}); err != nil {
			return inventory.Order{}, err
		}
	}
	return e.order(ctx, m)
}

// namedFacts says of the machine's own disks which generation they hold, in the
// words that stand there after a write: what was confirmed of a disk, and what is
// seen of it later, must be the same text.
func namedFacts(facts inventory.Facts, machine string) inventory.Facts {
	facts.Disks = slices.Clone(facts.Disks)
	for i, d := range facts.Disks {
		if d.Recast != nil && d.Recast.Machine == machine {
			facts.Disks[i].Holds = holdsText(*d.Recast)
		}
	}
	return facts
}

func holdsText(m inventory.Marker) string {
	return fmt.Sprintf("generation %s, written by recast in attempt %d", m.Generation.Short(), m.Attempt)
}

// maxFacts bounds an inventory, as the store's records are bounded.
const maxFacts = 512 << 10

func checkFacts(facts inventory.Facts) error {
	raw, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	if len(raw) > maxFacts {
		return refused("the inventory has %d bytes, at most %d are kept", len(raw), maxFacts)
	}
	return nil
}

func (e *Engine) decideDisk(ctx context.Context, name string, s State, facts inventory.Facts) (DiskDecision, error) {
	decl := e.Set().Machine(name)
	if decl == nil {
		return DiskDecision{Verdict: DiskRefuse, Reason: "the machine is not declared any more"}, nil
	}
	q := diskQuestion{Machine: decl, Intent: s.Intent, Attempt: s.Status.Attempt, Known: s.Status.Disk,
		Unfinished: s.Status.Unfinished, Volume: configRoom}
	if s.Intent.Purpose == PurposeWipe {
		return decideWipe(q, facts), nil
	}
	if s.Intent.Generation != "" {
		gen, err := e.generation(s.Intent.Generation)
		if err != nil {
			return DiskDecision{}, err
		}
		q.Select = gen.Resolved.Select
		f, ok := e.imageFacts(gen.Resolved.Image.Digest)
		if !ok && s.Intent.Purpose == PurposeDeploy {
			return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf("image %s is not here any more", gen.Resolved.Image.Digest.Short())}, nil
		}
		q.ImageSize, q.BlockSize = f.Size, f.BlockSize
	}
	if s.Intent.Purpose == PurposeDeploy {
		d, err := e.decideWrite(ctx, q, s, facts)
		return refuseDisk(e.withGate(d, s.Intent.Generation, facts), decl, facts), err
	}
	d := decideDisk(q, facts)
	return e.withGate(d, d.Marker.Generation, facts), nil
}

// decideWrite makes everything that the job will need before anything may be
// erased for it: what cannot be made is a reason, not a machine without a system.
func (e *Engine) decideWrite(ctx context.Context, q diskQuestion, s State, facts inventory.Facts) (DiskDecision, error) {
	volume, err := e.volume(ctx, q.Machine.Name, s)
	switch {
	case err == nil:
		q.Volume = int64(len(volume.Bytes))
	case errors.Is(err, ErrUnavailable) || ctx.Err() != nil:
		return DiskDecision{}, err
	default:
		return DiskDecision{Verdict: DiskRefuse, Reason: err.Error()}, nil
	}
	d := decideDisk(q, facts)
	if d.Verdict != DiskWrite {
		return d, nil
	}
	gen, err := e.generation(s.Intent.Generation)
	if err != nil {
		return d, err
	}
	s.Status.Facts = &facts
	if w := noTPM(q.Machine.Name, s.Status, gen); w != (Wait{}) {
		return DiskDecision{Verdict: DiskRefuse, Reason: w.Why, Disk: d.Disk, Holds: d.Holds}, nil
	}
	digest := gen.Resolved.Image.Digest
	if f, _ := e.imageFacts(digest); f.Damaged != "" {
		return DiskDecision{Verdict: DiskDamaged, Image: digest, Reason: f.Damaged}, nil
	}
	m, err := e.Images.Manifest(digest)
	if errors.Is(err, image.ErrDamaged) {
		_ = e.Images.Check(ctx, digest, -1) // marks it, so that mending it is seen
		return DiskDecision{Verdict: DiskDamaged, Image: digest, Reason: image.DamageOf(err)}, nil
	}
	if err != nil {
		return d, err
	}
	if m.Layout.Scheme != "gpt" {
		return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf("image %s has no GPT, so that it cannot get a config partition", digest.Short())}, nil
	}
	return d, nil
}
