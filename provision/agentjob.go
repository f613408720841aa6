package provision

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"recast/inventory"
	"recast/target"
)

// job makes the write intent's job. The lock is held.
func (e *Engine) job(ctx context.Context, name string, s State) (*inventory.Job, error) {
	in := s.Intent
	if in.Purpose == PurposeWipe {
		return wipeJob(name, s), nil
	}
	gen, err := e.generation(in.Generation)
	if err != nil {
		return nil, err
	}
	info, err := e.Images.Info(gen.Resolved.Image.Digest)
	if err != nil {
		return nil, fmt.Errorf("open the image: %w", err)
	}
	volume, err := e.volume(ctx, name, s)
	if err != nil {
		return nil, err
	}
	base, err := e.bootURL(in.Claim.Addr)
	if err != nil {
		return nil, err
	}
	return &inventory.Job{
		Kind: inventory.JobWrite, Machine: name, Generation: in.Generation, Rendered: in.Rendered,
		Epoch: in.Epoch, Fence: in.Fence, Attempt: s.Status.Attempt,
		Disk:   in.Write.Disk,
		Image:  e.jobImage(info, s, base),
		Quote:  e.key.writeQuote(s),
		Config: &inventory.JobConfig{Digest: volume.Digest, Size: int64(len(volume.Bytes)), Label: volume.Label},
		Wipe:   gen.Resolved.Wipe,
		EFI: &inventory.EFIEntry{Label: inventory.BootLabel, Loader: efiLoader(gen.Resolved.Image.Arch),
			Second: gen.Resolved.Every.Gated(), Again: againProgram(gen.Resolved.Gate)},
	}, nil
}

// efiLoader is the removable-media path that every disk image carries (UEFI
// specification, 3.5.1.1).
func efiLoader(a inventory.Arch) string {
	if a == inventory.ARM64 {
		return `\EFI\BOOT\BOOTAA64.EFI`
	}
	return `\EFI\BOOT\BOOTX64.EFI`
}

// serverAddr is our own address on the Network of a machine's address.
func (e *Engine) serverAddr(remote netip.Addr) (netip.Addr, error) {
	net := e.Set().NetworkOf(remote)
	if net == nil {
		return netip.Addr{}, fmt.Errorf("no network holds the address %s", remote)
	}
	addr, ok := e.Address(net.Name)
	if !ok {
		return netip.Addr{}, fmt.Errorf("the server has no address on network %q", net.Name)
	}
	return addr, nil
}

func (e *Engine) bootURL(remote netip.Addr) (string, error) {
	addr, err := e.serverAddr(remote)
	if err != nil {
		return "", err
	}
	return "http://" + netip.AddrPortFrom(addr, uint16(e.BootPort)).String(), nil
}

// volume renders the machine's config volume. It depends on durable state
// alone, so that it can be made again at any time with the same bytes.
func (e *Engine) volume(ctx context.Context, name string, s State) (target.Volume, error) {
	in := s.Intent
	gen, err := e.generation(in.Generation)
	if err != nil {
		return target.Volume{}, err
	}
	decl := e.Set().Machine(name)
	if w := in.Write; w != nil && w.Declared != nil {
		decl = w.Declared
	}
	if decl == nil {
		return target.Volume{}, refused("machine %q is not declared any more", name)
	}
	rendered, err := gen.Render(decl)
	if err != nil {
		return target.Volume{}, err
	}
	if rendered.Digest != in.Rendered {
		return target.Volume{}, refused("the declaration of %q changed in the middle of an attempt", name)
	}
	addr, err := e.serverAddr(in.Claim.Addr)
	if err != nil {
		return target.Volume{}, err
	}
	var missing error
	v, err := target.Render(target.Input{Rendered: withLearned(rendered, in.Claim.MAC), Format: gen.Resolved.Config.Format,
		Image: gen.Resolved.Image.Digest, Machine: decl, Attempt: s.Status.Attempt, Write: in.WriteName(),
		Again: againProgram(gen.Resolved.Gate) != nil,
		Secrets: func(secret string) (string, bool) {
			// The version that the generation names, whatever was set since.
			v, err := e.secrets.GetVersion(ctx, secret, gen.Resolved.Secrets[secret])
			missing = errors.Join(missing, err)
			return string(v), err == nil
		},
		Report: &target.Reporter{URL: agentURL(addr, e.AgentPort), CAPEM: string(e.authority.PEM()),
			Token: e.key.ReportToken(name, in.Generation, in.Rendered, in.WriteName())}})
	if missing != nil {
		return target.Volume{}, missing
	}
	return v, err
}

// ConfigVolume gives the config volume to the boot that has a job.
func (e *Engine) ConfigVolume(ctx context.Context, token string) ([]byte, error) {
	m, err := e.agent(token)
	if err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	st, in := m.state.Status, m.state.Intent
	if in.Purpose != PurposeDeploy || in.Write == nil || !in.Live || st.Step != StepWriting && st.Step != StepVerifying {
		return nil, refused("there is no write intent")
	}
	v, err := e.volume(ctx, m.name, m.state)
	return v.Bytes, err
}
