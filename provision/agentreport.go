package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"recast/image"
	"recast/inventory"
)

// Report takes the agent's word. The reply renews its lease or stops it.
func (e *Engine) Report(ctx context.Context, token string, r inventory.Report) (inventory.ReportReply, error) {
	if m, ok := e.gateAgent(token); ok {
		defer m.mu.Unlock()
		return e.gateReport(ctx, m, r)
	}
	var damaged inventory.Digest
	if r.Step == inventory.AgentFailed && r.BadFrame != nil {
		var whole bool
		if damaged, whole = e.checkImage(ctx, token, *r.BadFrame); whole {
			r.Error = clip(r.Error, 3*maxWord) + "; this server's own copy is whole, so that bytes change on their way or in the machine's memory"
		}
	}
	m, err := e.agent(token)
	if err != nil {
		return inventory.ReportReply{Abort: true, Reason: err.Error()}, err
	}
	defer m.mu.Unlock()
	in := m.state.Intent
	r.Error, r.BootEntry, r.BootOrder = clip(r.Error, 4*maxWord), clip(r.BootEntry, maxWord), clip(r.BootOrder, 4*maxWord)
	if in.Fence != r.Fence || m.state.Status.Attempt != r.Attempt || in.Claim.BootID != r.BootID {
		return inventory.ReportReply{Abort: true, Reason: "a newer attempt has begun"}, nil
	}
	if !in.Live && !written(m.state.Status.Step) {
		if w := in.Write; r.Erased && w != nil && !w.Erased {
			if err := e.handleLocked(ctx, m, Reported{Report: r}); err != nil {
				return inventory.ReportReply{Abort: true, Reason: err.Error()}, err
			}
		}
		return inventory.ReportReply{Abort: true, Reason: "the intent has ended: " + m.state.Status.LastError}, nil
	}
	if r.Step == inventory.AgentDone && in.Purpose == PurposeWipe && in.Write != nil {
		if why := wipeShort(in, r); why != "" {
			r.Step, r.Error = inventory.AgentFailed, why
		}
	} else if r.Step == inventory.AgentDone {
		gen, err := e.generation(in.Generation)
		if err != nil {
			return inventory.ReportReply{}, err
		}
		if want := gen.Resolved.Image.Digest; r.ReadBack != want {
			r.Step, r.Error = inventory.AgentFailed, fmt.Sprintf("the disk reads back as %q, not as image %s", r.ReadBack.Short(), want.Short())
		}
	}
	measured := e.measured(m.state, r, e.key.Nonce(in, in.Boots-1), e.key.writeQuote(m.state), in.Generation)
	r.Quote = nil
	if err := e.handleLocked(ctx, m, Reported{Report: r, Damaged: damaged, Measured: measured}); err != nil {
		return inventory.ReportReply{}, err
	}
	if !m.state.Intent.Live || m.state.Intent.Claim == nil {
		return inventory.ReportReply{Reason: m.state.Status.LastError}, nil
	}
	left, err := e.renew(ctx, m)
	return inventory.ReportReply{LeaseSeconds: left}, err
}

// checkImage hashes our own copy of what an agent found wrong: the image that is
// damaged here, or whole.
func (e *Engine) checkImage(ctx context.Context, token string, frame int) (damaged inventory.Digest, whole bool) {
	m, err := e.agent(token)
	if err != nil {
		return "", false
	}
	in := m.state.Intent
	m.mu.Unlock()
	gen, err := e.generation(in.Generation)
	if err != nil {
		return "", false
	}
	d := gen.Resolved.Image.Digest
	err = e.Images.Check(ctx, d, frame)
	if errors.Is(err, image.ErrDamaged) {
		e.Log.Error("image is damaged", "image", d, "frame", frame, "err", err)
		return d, false
	}
	return "", err == nil
}

// Booted takes the installed system's word about itself.
func (e *Engine) Booted(ctx context.Context, token string, r inventory.BootReport) error {
	if !sameToken(token, e.key.ReportToken(r.Machine, r.Generation, r.Rendered, r.Write)) {
		return refused("the token does not speak for machine %q, generation %s, write %q", r.Machine, r.Generation.Short(), r.Write)
	}
	r.BootID, r.Hostname = clip(r.BootID, maxWord), clip(r.Hostname, maxWord)
	r.BootOrder, r.BootCurrent = clip(r.BootOrder, 4*maxWord), clip(r.BootCurrent, maxWord)
	return e.handle(ctx, e.machine(r.Machine), Running{Report: r, Declared: e.Set().Machine(r.Machine)})
}

// clip bounds a machine's words about itself and keeps them on one line.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
