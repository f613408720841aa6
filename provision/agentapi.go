package provision

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"recast/image"
	"recast/inventory"
	"recast/store"
	"recast/target"
)

// RefusedError is an agent's request that is refused for good: the agent shows
// the reason and starts over.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

func refused(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// Claim answers an armed machine's first word. The grant is durable before it
// is given.
func (e *Engine) Claim(ctx context.Context, c inventory.Claim, remote netip.Addr) (inventory.ClaimReply, error) {
	if c.BootID == "" || len(c.BootID) > maxWord || len(c.UUID) > maxWord || len(c.Serial) > maxWord {
		return inventory.ClaimReply{}, refused("claim: bootID, uuid and serial have at most %d bytes, and bootID is not empty", maxWord)
	}
	decl := e.Set().MachineByMAC(c.MAC)
	if decl == nil {
		return inventory.ClaimReply{}, refused("claim: no machine declares %s", c.MAC)
	}
	net := e.Set().NetworkOf(remote)
	if net == nil {
		return inventory.ClaimReply{}, refused("claim: %s is on no declared network", remote)
	}
	lease, err := e.leaseOf(ctx, net.Name, remote)
	if err != nil {
		return inventory.ClaimReply{}, err
	}
	m := e.machine(decl.Name)
	twin := e.twin(decl.Name, c.UUID)
	m.mu.Lock()
	defer m.mu.Unlock()
	d := decideClaim(claimQuestion{Key: e.key, Machine: decl, State: m.state, Claim: c, Remote: remote,
		Lease: lease, Authoritative: net.DHCP == inventory.DHCPAuthoritative, Twin: twin, Now: e.Now()})
	switch d.Verdict {
	case ClaimGrant:
		err = e.handleLocked(ctx, m, Claimed{Claim: d.Claim, Resume: d.Resume})
	case ClaimRepeat:
	case ClaimReplay:
		err = e.handleLocked(ctx, m, Noticed{"a claim nonce was presented again, by another boot or from another address: somebody else has read its boot script"})
		m.history.saw(e.Now(), fmt.Sprintf("claim from %s refused: %s", remote, d.Reason))
		return inventory.ClaimReply{}, errors.Join(refused("claim: %s", d.Reason), err)
	case ClaimHold:
		err = e.suspect(ctx, m, twin, d.Reason)
		fallthrough
	default:
		m.history.saw(e.Now(), "claim refused: "+d.Reason)
		return inventory.ClaimReply{}, errors.Join(refused("claim: %s", d.Reason), err)
	}
	if err != nil {
		return inventory.ClaimReply{}, err
	}
	return inventory.ClaimReply{Machine: decl.Name, Token: e.key.AgentToken(m.state.Intent),
		LeaseSeconds: e.leaseLeft(m)}, nil
}

// maxWord bounds what a machine says of itself and we keep: SMBIOS strings, boot
// ids, host names.
const maxWord = 256

// suspect holds a machine whose lock is held, and its twin.
func (e *Engine) suspect(ctx context.Context, m *machine, twin, reason string) error {
	err := e.handleLocked(ctx, m, Suspected{Reason: reason})
	if twin != "" {
		e.spawn(func() {
			if err := e.handle(e.background(), e.machine(twin), Suspected{Reason: reason}); err != nil {
				e.Log.Warn("hold not recorded", "machine", twin, "err", err)
			}
		})
	}
	return err
}

// leaseOf is the machine that holds the lease of an address now, "" none. What
// was watched may be a moment late, the lease itself is durable before its ACK.
func (e *Engine) leaseOf(ctx context.Context, network string, addr netip.Addr) (string, error) {
	holds := func(l inventory.Lease) bool {
		return l.Machine != "" && l.State == inventory.LeaseBound && e.Now().Before(l.Expires)
	}
	e.mu.RLock()
	l := e.leases[addr]
	e.mu.RUnlock()
	if holds(l) {
		return l.Machine, nil
	}
	l, _, err := e.leaseTable.Get(ctx, network+"/"+addr.String())
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the lease of %s: %w", addr, err)
	}
	if !holds(l) {
		return "", nil
	}
	return l.Machine, nil
}

// leaseLeft is what remains of the durable lease, whole seconds.
func (e *Engine) leaseLeft(m *machine) int {
	return max(0, int(m.state.Intent.Claim.Until.Sub(e.Now()).Seconds()))
}

// twin is another machine that says the same UUID, "" none.
func (e *Engine) twin(name, uuid string) string {
	if !usableUUID(uuid) {
		return ""
	}
	for _, m := range e.list() {
		if m.name == name || e.Set().Machine(m.name) == nil {
			continue
		}
		s := m.snapshot()
		if f := s.Status.Facts; f != nil && strings.EqualFold(f.SystemVendor.UUID, uuid) {
			return m.name
		}
		if in := s.Intent; in != nil && in.Live && in.Claim != nil && strings.EqualFold(in.Claim.UUID, uuid) {
			return m.name
		}
	}
	return ""
}

// agent finds the machine whose present boot holds the token, and locks it.
func (e *Engine) agent(token string) (*machine, error) {
	m, ok := e.known(tokenMachine(token))
	if !ok {
		return nil, refused("the token is not known")
	}
	m.mu.Lock()
	in := m.state.Intent
	if in == nil || in.Claim == nil || in.Epoch != e.Store.Epoch() || !sameToken(token, e.key.AgentToken(in)) {
		m.mu.Unlock()
		return nil, refused("the token is not that of the machine's present boot")
	}
	return m, nil
}

// renew prolongs the lease. The durable end is moved only when it comes near,
// and no agent is ever told more than what is durable.
func (e *Engine) renew(ctx context.Context, m *machine) (int, error) {
	now := e.Now()
	in := m.state.Intent
	if in.Live && in.Claim.Until.Sub(now) < LeaseTime*2/3 {
		if err := e.handleLocked(ctx, m, Renewed{Until: now.Add(LeaseTime)}); err != nil {
			return e.leaseLeft(m), err
		}
	}
	return e.leaseLeft(m), nil
}

// Inventory takes what the ramdisk saw, decides about the disk, and answers
// with the first order. A write intent is durable before its job is given.
func (e *Engine) Inventory(ctx context.Context, token string, facts inventory.Facts) (inventory.Order, error) {
	m, err := e.agent(token)
	if err != nil {
		return inventory.Order{}, err
	}
	m.mu.Unlock()
	if err := checkFacts(facts); err != nil {
		return inventory.Order{}, err
	}
	// Both of two that started in one moment have claimed by now.
	twin := e.twin(m.name, facts.SystemVendor.UUID)
	if m, err = e.agent(token); err != nil {
		return inventory.Order{}, err
	}
	defer m.mu.Unlock()
	s := m.state
	if s.Status.Step == StepInspecting && Busy(s.Status.Phase) {
		if c, v := s.Intent.Claim, facts.SystemVendor; c.UUID != v.UUID || c.Serial != v.SerialNumber {
			return inventory.Order{}, errors.Join(refused("inventory: UUID %q serial %q is not what claimed %s", v.UUID, v.SerialNumber, m.name),
				e.suspect(ctx, m, "", fmt.Sprintf("%s was claimed with UUID %q serial %q, its inventory says %q %q", m.name, c.UUID, c.Serial, v.UUID, v.SerialNumber)))
		}
		if twin != "" {
			reason := fmt.Sprintf("%s and %s say the same UUID %s", m.name, twin, facts.SystemVendor.UUID)
			return inventory.Order{}, errors.Join(refused("inventory: %s", reason), e.suspect(ctx, m, twin, reason))
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
	if s.Intent.Purpose != PurposeDeploy {
		return decideDisk(q, facts), nil
	}
	return e.decideWrite(ctx, q, s, facts)
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
	digest := gen.Resolved.Image.Digest
	if f, _ := e.imageFacts(digest); f.Damaged != "" {
		return DiskDecision{Verdict: DiskDamaged, Image: digest, Reason: f.Damaged}, nil
	}
	m, err := e.Images.Manifest(digest)
	if errors.Is(err, image.ErrDamaged) {
		_ = e.Images.Check(ctx, digest, -1) // marks it, so that mending it is seen
		return DiskDecision{Verdict: DiskDamaged, Image: digest, Reason: err.Error()}, nil
	}
	if err != nil {
		return d, err
	}
	if m.Layout.Scheme != "gpt" {
		return DiskDecision{Verdict: DiskRefuse, Reason: fmt.Sprintf("image %s has no GPT, so that it cannot get a config partition", digest.Short())}, nil
	}
	return d, nil
}

// order is what the machine's present boot shall do now. The lock is held.
func (e *Engine) order(ctx context.Context, m *machine) (inventory.Order, error) {
	st, in := m.state.Status, m.state.Intent
	switch {
	case Busy(st.Phase) && (st.Step == StepWriting || st.Step == StepVerifying) && in.Write != nil:
		left, err := e.renew(ctx, m)
		if err != nil {
			return inventory.Order{}, err
		}
		job, err := e.job(ctx, m.name, m.state)
		if err != nil {
			return inventory.Order{}, err
		}
		return inventory.Order{Kind: inventory.OrderKind(job.Kind), Job: job, LeaseSeconds: left}, nil
	case Busy(st.Phase) && st.Step == StepInspecting:
		return inventory.Order{Kind: inventory.OrderWait, Reason: "send the inventory"}, nil
	case in.Purpose == PurposeWipe && in.Write != nil && (st.Step == StepPowerOff || !in.Live):
		return inventory.Order{Kind: inventory.OrderPowerOff, Reason: cmp.Or(st.LastError, "the disk is wiped")}, nil
	case Busy(st.Phase) && st.Step != StepStarting:
		// Another attempt has begun; a BMC will cut the power, else it goes by itself.
		return inventory.Order{Kind: inventory.OrderReboot, Reason: fmt.Sprintf("attempt %d begins: %s", st.Attempt, st.LastError)}, nil
	case st.Phase == Failed && st.Unfinished:
		return inventory.Order{Kind: inventory.OrderPowerOff, Reason: st.LastError}, nil
	}
	reason := st.LastError
	if reason == "" {
		reason = string(st.Phase)
	}
	return inventory.Order{Kind: inventory.OrderLocal, Reason: reason}, nil
}

// PollTime is how long Order holds a waiting agent's request.
const PollTime = 25 * time.Second

// Order answers an agent's long poll.
func (e *Engine) Order(ctx context.Context, token string) (inventory.Order, error) {
	if mac, ok := tokenMAC(token); ok {
		return e.discoveryPoll(ctx, token, mac)
	}
	deadline := time.NewTimer(PollTime)
	defer deadline.Stop()
	for {
		m, err := e.agent(token)
		if err != nil {
			return inventory.Order{}, err
		}
		o, err := e.order(ctx, m)
		changed := m.orders
		m.mu.Unlock()
		if err != nil || o.Kind != inventory.OrderWait {
			return o, err
		}
		select {
		case <-changed:
		case <-deadline.C:
			return o, nil
		case <-ctx.Done():
			return o, ctx.Err()
		}
	}
}

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
		Disk: in.Write.Disk,
		Image: inventory.JobImage{Digest: info.Digest, Size: info.Size, Manifest: info.Manifest, Pack: info.Pack,
			URLs: []string{base + "/images"}},
		Config: &inventory.JobConfig{Digest: volume.Digest, Size: int64(len(volume.Bytes)), Label: volume.Label},
		Wipe:   gen.Resolved.Wipe,
		EFI:    &inventory.EFIEntry{Label: "recast", Loader: efiLoader(gen.Resolved.Image.Arch)},
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
	v, err := target.Render(target.Input{Rendered: rendered, Format: gen.Resolved.Config.Format,
		Image: gen.Resolved.Image.Digest, Machine: decl, Attempt: s.Status.Attempt, Write: in.WriteName(),
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

// Report takes the agent's word. The reply renews its lease or stops it.
func (e *Engine) Report(ctx context.Context, token string, r inventory.Report) (inventory.ReportReply, error) {
	var damaged inventory.Digest
	if r.Step == inventory.AgentFailed && r.BadFrame != nil {
		damaged = e.checkImage(ctx, token, *r.BadFrame)
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
	if !in.Live && m.state.Status.Step != StepStarting {
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
	if err := e.handleLocked(ctx, m, Reported{Report: r, Damaged: damaged}); err != nil {
		return inventory.ReportReply{}, err
	}
	if !m.state.Intent.Live || m.state.Intent.Claim == nil {
		return inventory.ReportReply{Reason: m.state.Status.LastError}, nil
	}
	left, err := e.renew(ctx, m)
	return inventory.ReportReply{LeaseSeconds: left}, err
}

// checkImage hashes our own copy of what an agent found wrong.
func (e *Engine) checkImage(ctx context.Context, token string, frame int) inventory.Digest {
	m, err := e.agent(token)
	if err != nil {
		return ""
	}
	in := m.state.Intent
	m.mu.Unlock()
	gen, err := e.generation(in.Generation)
	if err != nil {
		return ""
	}
	d := gen.Resolved.Image.Digest
	if err := e.Images.Check(ctx, d, frame); errors.Is(err, image.ErrDamaged) {
		e.Log.Error("image is damaged", "image", d, "frame", frame, "err", err)
		return d
	}
	return ""
}

// Booted takes the installed system's word about itself.
func (e *Engine) Booted(ctx context.Context, token string, r inventory.BootReport) error {
	if !sameToken(token, e.key.ReportToken(r.Machine, r.Generation, r.Rendered, r.Write)) {
		return refused("the token does not speak for machine %q, generation %s, write %q", r.Machine, r.Generation.Short(), r.Write)
	}
	r.BootID, r.Hostname = clip(r.BootID, maxWord), clip(r.Hostname, maxWord)
	r.BootOrder, r.BootCurrent = clip(r.BootOrder, 4*maxWord), clip(r.BootCurrent, maxWord)
	return e.handle(ctx, e.machine(r.Machine), Running{Report: r})
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

// Stray is an undeclared machine's inventory.
type Stray struct {
	MAC     inventory.MAC   `json:"mac"`
	Network string          `json:"network,omitempty"`
	Addr    netip.Addr      `json:"addr,omitzero"`
	Facts   inventory.Facts `json:"facts"`
	At      time.Time       `json:"at"`
	// YAML declares it; filled in when shown.
	YAML string `json:"yaml,omitempty"`
}

// empty tells that no disk holds anything. A machine that shows no disk may have
// one behind a controller that the ramdisk does not know: any doubt is its disk.
func (d Stray) empty() bool {
	if len(d.Facts.Disks) == 0 {
		return false
	}
	for _, disk := range d.Facts.Disks {
		if disk.Holds != "" {
			return false
		}
	}
	return true
}

// Discover takes an undeclared machine's inventory. The token, which the boot
// script carried, permits this and nothing else.
func (e *Engine) Discover(ctx context.Context, token string, facts inventory.Facts, remote netip.Addr) (inventory.Order, error) {
	mac, _ := tokenMAC(token)
	if !sameToken(token, e.key.DiscoveryToken(e.Store.Epoch(), mac)) {
		return inventory.Order{}, refused("the discovery token is not that of %s", mac)
	}
	if err := checkFacts(facts); err != nil {
		return inventory.Order{}, err
	}
	have, old, room := e.strayRoom(mac)
	switch since := e.Now().Sub(have.At); {
	case !room:
		return inventory.Order{}, refused("%d undeclared machines are known, and no more are kept: declare them, or set unknown: ignore", maxStrays)
	case !have.At.IsZero() && since >= 0 && since < strayPause:
		return e.discoveryOrder(have), nil // it was heard a moment ago
	}
	d := Stray{MAC: mac, Addr: remote, Facts: facts, At: e.Now()}
	if n := e.Set().NetworkOf(remote); n != nil {
		d.Network = n.Name
	}
	op, err := e.discovered.PutOp(strayName(mac), d, store.Any)
	if err != nil {
		return inventory.Order{}, err
	}
	ops := []store.Op{op}
	if old != "" {
		ops = append(ops, e.discovered.DeleteOp(strayName(old), store.Any))
	}
	if _, err := e.durable(ctx, ops...); err != nil {
		return inventory.Order{}, fmt.Errorf("record the discovery: %w", err)
	}
	e.mu.Lock()
	e.strays[mac] = d
	delete(e.strays, old)
	e.mu.Unlock()
	e.changes.send(AllMachines)
	return e.discoveryOrder(d), nil
}

// Anybody on a Network that discovers can get a token for any hardware address:
// what strangers may leave in the store is bounded in number and in rate.
const (
	maxStrays  = 4096
	strayPause = 10 * time.Second
	// strayOld: after this time without a word a stranger makes room for another.
	strayOld = 24 * time.Hour
)

func strayName(mac inventory.MAC) string { return strings.ReplaceAll(mac.String(), ":", "-") }

// strayRoom is what is known of a stranger, which other one has to go for it (""
// none), and whether its inventory may be kept.
func (e *Engine) strayRoom(mac inventory.MAC) (have Stray, old inventory.MAC, room bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	have, known := e.strays[mac]
	if known || len(e.strays) < maxStrays {
		return have, "", true
	}
	last := e.Now().Add(-strayOld)
	for other, s := range e.strays {
		if s.At.Before(last) || e.set.MachineByMAC(other) != nil {
			return have, other, true
		}
	}
	return have, "", false
}

// discoveryOrder: a machine with something on a disk goes back to it; an empty
// one waits to be declared.
func (e *Engine) discoveryOrder(d Stray) inventory.Order {
	if m := e.Set().MachineByMAC(d.MAC); m != nil {
		return inventory.Order{Kind: inventory.OrderReboot, Reason: "declared as " + m.Name}
	}
	if d.empty() {
		return inventory.Order{Kind: inventory.OrderWait, Reason: "waits to be declared"}
	}
	return inventory.Order{Kind: inventory.OrderLocal, Reason: "inventory taken"}
}

// discoveryPoll answers the long poll of a discovered machine.
func (e *Engine) discoveryPoll(ctx context.Context, token string, mac inventory.MAC) (inventory.Order, error) {
	if !sameToken(token, e.key.DiscoveryToken(e.Store.Epoch(), mac)) {
		return inventory.Order{}, refused("the discovery token is not that of %s", mac)
	}
	ctx, cancel := context.WithTimeout(ctx, PollTime)
	defer cancel()
	changes := e.Watch(ctx)
	for {
		e.mu.RLock()
		d, ok := e.strays[mac]
		e.mu.RUnlock()
		if !ok {
			return inventory.Order{}, refused("send the inventory first")
		}
		if o := e.discoveryOrder(d); o.Kind != inventory.OrderWait {
			return o, nil
		}
		if _, open := <-changes; !open {
			return e.discoveryOrder(d), nil
		}
	}
}
