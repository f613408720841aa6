package provision

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/store"
)

// EnrolOptions say what an operator vouches for.
type EnrolOptions struct {
	// Pin is the certificate that the BMC must show; none: the one that it shows, unless
	// another was accepted before.
	Pin inventory.Digest `json:"pin,omitempty"`
	// Defaults names the secret with the vendor's default passwords, user:password each
	// on a line, two at the most: each is tried once, and BMCs lock after three.
	Defaults string `json:"defaults,omitempty"`
}

const (
	defaultsMost = 2
	// exposurePrefix begins the finding of an enrolment.
	exposurePrefix = "its BMC is open: "
	ipmiPort       = 623
)

// EnrolBMC looks at the BMC of a machine, pins the certificate that it shows, logs in
// once, and records which BMC it is and by which protocol it is spoken to from now
// on. What it offers to anybody becomes a finding.
func (e *Engine) EnrolBMC(ctx context.Context, name, who string, o EnrolOptions) (BMCView, error) {
	decl, k, err := e.declaredBMC(name)
	if err != nil {
		return BMCView{}, fmt.Errorf("enrol: %w", err)
	}
	m := e.machine(name)
	m.bmcMu.Lock()
	defer m.bmcMu.Unlock()
	m.asked, m.boardDue = bmcNow{}, time.Time{}
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	ctx, stop, err := e.whileHeld(ctx)
	if err != nil {
		return BMCView{}, err
	}
	defer stop()
	leave, err := k.enter(ctx)
	if err != nil {
		return BMCView{}, fmt.Errorf("enrol %q: %w", name, err)
	}
	defer leave()
	n := &enrolment{e: e, decl: decl, k: k, who: who, options: o}
	if err := n.run(ctx); err != nil {
		e.noticeRefusal(ctx, name, err)
		if next := e.secretNext(name, err); next != "" && !strings.Contains(err.Error(), next) {
			err = fmt.Errorf("%w; %s", err, next)
		}
		return BMCView{}, fmt.Errorf("enrol %q: %w", name, err)
	}
	e.noticeRefusal(ctx, name, nil)
	e.askSoon(func(m *inventory.Machine) bool { // others behind the same BMC were refused with it
		of, err := bmcKey(m.BMC.URL)
		return err == nil && of == k.key && m.Name != name
	})
	return *k.view(decl), nil
}

// enrolment is one under way; whoever makes it has the BMC's turn.
type enrolment struct {
	e       *Engine
	decl    *inventory.Machine
	k       *bmcKnown
	who     string
	options EnrolOptions

	board    Board
	findings []string
}

func (n *enrolment) run(ctx context.Context) error {
	driver, host, port, err := bmc.Address(n.decl.BMC.URL)
	if err != nil {
		return err
	}
	defaults, tried, err := n.defaults(ctx)
	if err != nil {
		return err
	}
	if err := n.pin(ctx, driver); err != nil {
		return err
	}
	login, err := n.login(ctx)
	if err != nil {
		return err
	}
	at := net.JoinHostPort(host, strconv.Itoa(port))
	if driver == "redfish" {
		at = net.JoinHostPort(host, strconv.Itoa(ipmiPort))
	}
	x, err := bmc.Expose(ctx, at)
	if err != nil {
		return err
	}
	n.findings = append(n.findings, x.Findings()...)
	if driver == "redfish" && x.IPMI20 {
		n.findings = append(n.findings, "IPMI is on beside Redfish, and gives whoever names a user a hash of the password to guess at: disable IPMI over LAN")
	}
	if err := n.tryDefaults(ctx, defaults, tried, login); err != nil {
		return err
	}
	r := n.k.record()
	r.Driver, r.At, r.By, r.Exposure, r.Refused = driver, n.e.Now(), n.who, &x, nil
	detail := driver
	if pin := n.k.view(n.decl).Pin; pin != "" {
		detail += ", certificate " + string(pin)
	}
	ev := Enrolled{Board: n.board}
	if len(n.findings) > 0 {
		ev.Finding = exposurePrefix + strings.Join(n.findings, "; ")
	}
	return n.record(ctx, "bmc enrol", detail, r, ev)
}

// record commits a record with the operator's word.
func (n *enrolment) record(ctx context.Context, what, detail string, r bmcRecord, ev Event) error {
	op, keep, err := n.e.book.write(n.k, r)
	if err != nil {
		return err
	}
	return n.e.said(ctx, n.decl.Name, n.who, what, detail, func(m *machine, said []TimelineEntry, audit store.Op) error {
		if err := n.e.handleWith(ctx, m, ev, said, audit, op); err != nil {
			return err
		}
		keep()
		return nil
	})
}

// pin decides about the certificate that the BMC shows, before anything is sent to it.
func (n *enrolment) pin(ctx context.Context, driver string) error {
	want, declared := n.options.Pin, n.decl.BMC.Pin
	if driver != "redfish" {
		if want != "" {
			return errors.New("IPMI has no certificate to pin")
		}
		return nil
	}
	seen, err := bmc.Fingerprint(ctx, n.decl.BMC.URL)
	if err != nil {
		return err
	}
	r := n.k.record()
	switch {
	case want != "" && want != seen:
		return fmt.Errorf("it shows the certificate %s, not %s", seen, want)
	case declared != "" && declared != seen:
		return &bmc.PinError{Host: n.k.key, Seen: seen, Want: declared}
	case declared != "", r.Pin == seen:
		return nil
	case r.Pin != "" && want == "":
		return &bmc.PinError{Host: n.k.key, Seen: seen, Want: r.Pin}
	}
	before := r.Pin
	r.Pin = seen
	detail := string(seen)
	if before != "" {
		detail += ", before " + string(before)
	}
	// By itself, and now: what comes may fail, and is about the password.
	return n.record(ctx, "bmc pin", detail, r, Noticed{About: refusalPrefix})
}

// login finds out that a password works, and which BMC it is that takes it.
func (n *enrolment) login(ctx context.Context) (bmc.Target, error) {
	look := func(t bmc.Target) error {
		return n.e.bmcs.Do(ctx, t, func(ctx context.Context, c bmc.Client) error {
			r := n.k.record()
			d, ok := c.(bmc.Describer)
			if !ok {
				return nil
			}
			id, err := d.Identity(ctx)
			if errors.Is(err, bmc.ErrChangePassword) {
				n.findings = append(n.findings, "it wants its password changed first: recast bmc rotate "+n.decl.Name)
				return nil
			}
			if err != nil {
				return err
			}
			r.About, n.board = id.BMC, boardOf(id, t.URL)
			n.board.By = n.who
			if l, ok := c.(bmc.Learner); ok {
				r.Facts = l.Facts()
			}
			n.k.shown.Store(&r) // recorded with the enrolment
			return nil
		})
	}
	if n.k.record().Pending != nil {
		if err := n.e.settle(ctx, n.decl, n.k); err != nil && !errors.Is(err, bmc.ErrAuth) {
			return bmc.Target{}, err
		}
	}
	r := n.k.record()
	t, err := n.e.bmcTarget(ctx, n.decl, n.k, r.Login)
	if err == nil {
		err = look(t)
	}
	if r.Login == nil && r.Pending == nil || err != nil && !errors.Is(err, bmc.ErrAuth) && !errors.Is(err, errNoCredentials) {
		return t, err
	}
	if err == nil && r.Pending == nil {
		return t, nil
	}
	// The BMC has forgotten what a rotation set, as after a reset to its factory's
	// settings: an operator's word is what the declared secret is tried for again.
	t, declared := n.e.bmcTarget(ctx, n.decl, n.k, nil)
	if declared == nil {
		declared = look(t)
	}
	if declared != nil {
		return t, errors.Join(declared, err)
	}
	r = n.k.record()
	r.Login, r.Pending = nil, nil
	n.k.shown.Store(&r)
	return t, nil
}

// defaults are the listed default passwords that were not tried yet.
func (n *enrolment) defaults(ctx context.Context) (list [][2]string, tried string, err error) {
	name := n.options.Defaults
	if name == "" {
		return nil, "", nil
	}
	version, _ := n.e.secrets.Version(name)
	raw, err := n.e.secrets.Get(ctx, name)
	if err != nil {
		return nil, "", err
	}
	tried = fmt.Sprintf("%s@%d", name, version)
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		user, password, err := bmc.Split(line)
		if err != nil {
			return nil, "", fmt.Errorf("secret %q: %w, one a line", name, err)
		}
		list = append(list, [2]string{user, password.Reveal()})
	}
	if len(list) > defaultsMost {
		return nil, "", fmt.Errorf("secret %q lists %d passwords: want at most %d, since BMCs lock after three that are wrong", name, len(list), defaultsMost)
	}
	return list, tried, nil
}

// tryDefaults logs in once with each, and never again: that they are tried is on
// record before they are.
func (n *enrolment) tryDefaults(ctx context.Context, list [][2]string, tried string, own bmc.Target) error {
	r := n.k.record()
	if len(list) == 0 || r.Tried == tried {
		return nil
	}
	r.Tried = tried
	if err := n.e.putBMC(ctx, n.k, r); err != nil {
		return err
	}
	for i, d := range list {
		if d[0] == own.User && d[1] == own.Password.Reveal() {
			n.findings = append(n.findings, fmt.Sprintf("recast logs in with a listed default password of %q: recast bmc rotate %s", d[0], n.decl.Name))
			continue
		}
		t := own
		t.User, t.Password, t.Credential = d[0], bmc.Secret(d[1]), fmt.Sprintf("%s, %d", tried, i)
		err := n.e.bmcs.Do(ctx, t, func(context.Context, bmc.Client) error { return nil })
		switch {
		case err == nil:
			n.findings = append(n.findings, fmt.Sprintf("it lets in %q with a listed default password: set another, or disable the user", d[0]))
		case errors.Is(err, bmc.ErrLockedOut):
			return err
		case !errors.Is(err, bmc.ErrAuth):
			return fmt.Errorf("try the default password of %q: %w", d[0], err)
		}
	}
	return nil
}
