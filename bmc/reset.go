package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"
)

// Resetter is a Client that restarts the BMC itself; the machine does not notice.
// Those of Dial and Fake do.
type Resetter interface {
	// ResetBMC returns nil when the BMC has forgotten our session and answers again.
	ResetBMC(ctx context.Context) error
}

var (
	_ Resetter = (*session)(nil)
	_ Resetter = (*Fake)(nil)
)

const (
	// resetBegins is how long a BMC may take to begin: it answers first.
	resetBegins = 15 * time.Second
	// resetTakes is how long it may be away; vendors say one to five minutes.
	resetTakes = 6 * time.Minute
)

// resetter is a driver that restarts its BMC.
type resetter interface {
	resetBMC(context.Context) error
	// restarted looks, without a login.
	restarted(context.Context) (restartLook, error)
}

// restartLook is what shows of a BMC that was told to restart.
type restartLook string

const (
	lookSame      restartLook = "it goes on as before"
	lookAway      restartLook = "it does not answer any more"
	lookForgotten restartLook = "it answers, and has forgotten our session"
)

func (s *session) ResetBMC(ctx context.Context) error {
	const verb = "reset the BMC"
	d, ok := s.seen.driver.(resetter)
	if !ok {
		return fmt.Errorf("%s: %w", verb, ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, s.wait(resetTakes))
	defer cancel()
	actErr := s.call(ctx, verb, func(ctx context.Context) error { return notAllowed(d.resetBMC(ctx)) })
	if actErr != nil && OutcomeOf(actErr) != Unknown {
		return actErr
	}
	if d, ok := s.seen.driver.(*ipmiDriver); ok {
		defer d.drop()
	}
	begun, away, last := time.Now().Add(s.wait(resetBegins)), false, lookSame
	for pause := pollFirst; ; pause = min(2*pause, pollMost) {
		var look restartLook
		err := s.call(ctx, "look for the BMC", func(ctx context.Context) (err error) {
			look, err = d.restarted(ctx)
			return err
		})
		switch {
		case final(err):
			return fmt.Errorf("%s: %w", verb, err)
		case err != nil:
		case look == lookForgotten, look == lookSame && away:
			return nil
		case look == lookAway:
			away = true
		case time.Now().After(begun) && actErr != nil:
			return actErr
		case time.Now().After(begun):
			return fmt.Errorf("%s: %w: %s", verb, ErrUnverified, look)
		}
		if err == nil {
			last = look
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
			timer.Stop()
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return ended(ctx, verb)
		}
		if actErr != nil { // whether it took the command is not known
			return fmt.Errorf("%w; %s", actErr, last)
		}
		return fmt.Errorf("%s: %w: %s", verb, ErrUnverified, last)
	}
}

func (d *redfishDriver) resetBMC(ctx context.Context) error {
	return d.again(ctx, func() error {
		target, kinds, err := d.managerReset(ctx)
		if err != nil {
			return err
		}
		for i, kind := range kinds {
			err = d.write(ctx, http.MethodPost, target, "", map[string]any{"ResetType": kind})
			if i == len(kinds)-1 || !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrRejected) {
				break
			}
		}
		return err
	})
}

// managerReset finds the one manager that is the system's BMC, and its ways to
// restart, the gentler one first.
func (d *redfishDriver) managerReset(ctx context.Context) (target string, kinds []string, err error) {
	var system redfishOwner
	if _, err := d.get(ctx, d.transport.system, &system); err != nil {
		return "", nil, err
	}
	var uris []string
	for _, l := range system.Links.ManagedBy {
		uris = append(uris, d.local(l.ID))
	}
	if len(uris) == 0 {
		if uris, err = d.members(ctx, "/redfish/v1/Managers"); err != nil {
			return "", nil, err
		}
	}
	type manager struct {
		Kind    text `json:"ManagerType"`
		Actions struct {
			Reset struct {
				Target string   `json:"target"`
				Kinds  []string `json:"ResetType@Redfish.AllowableValues"`
			} `json:"#Manager.Reset"`
		} `json:"Actions"`
	}
	var found []manager
	for _, uri := range uris {
		var m manager
		if _, err := d.get(ctx, uri, &m); gone(err) {
			continue
		} else if err != nil {
			return "", nil, err
		}
		if d.local(m.Actions.Reset.Target) != "" {
			found = append(found, m)
		}
	}
	if len(found) > 1 { // an enclosure's, a service processor's
		found = slices.DeleteFunc(found, func(m manager) bool { return m.Kind != "BMC" })
	}
	if len(found) != 1 {
		return "", nil, fmt.Errorf("%w: %d of its managers can be reset, want one", ErrUnsupported, len(found))
	}
	reset := found[0].Actions.Reset
	for _, kind := range []string{"GracefulRestart", "ForceRestart"} {
		if len(reset.Kinds) == 0 || slices.Contains(reset.Kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		return "", nil, fmt.Errorf("%w: its manager restarts by %s only", ErrUnsupported, strings.Join(reset.Kinds, ", "))
	}
	return d.local(reset.Target), kinds, nil
}

func (d *redfishDriver) restarted(ctx context.Context) (restartLook, error) {
	d.transport.mu.Lock()
	uri := d.transport.session.URI
	d.transport.mu.Unlock()
	d.rest() // a connection of before would tell nothing
	d.transport.begin(ctx)
	if _, err := d.get(ctx, "/redfish/v1/", &struct{}{}); errors.Is(err, ErrPin) {
		return "", err // it made itself a new one
	} else if err != nil {
		return lookAway, nil
	}
	if uri == "" {
		return lookSame, nil // basic authentication
	}
	d.transport.begin(ctx)
	_, err := d.get(ctx, uri, &struct{}{})
	switch {
	case err == nil:
		return lookSame, nil
	case errors.Is(err, ErrAuth), gone(err):
		return lookForgotten, nil
	}
	return lookAway, nil
}

func (d *ipmiDriver) resetBMC(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lib == nil || time.Since(d.opened) > ipmiSessionLife {
		if err := d.openLocked(ctx); err != nil {
			return err
		}
	}
	// The session is kept, whatever comes of this: by it restarted tells. Its own end
	// is put off; go-ipmi's keepalive would begin after 30 s.
	d.expiry.Reset(ipmiSessionLife + resetBegins)
	d.lib.WithRetry(0).WithTimeout(3 * d.timeout)
	return d.lib.ColdReset(ctx)
}

func (d *ipmiDriver) restarted(ctx context.Context) (restartLook, error) {
	for range 2 { // an answer may have been lost
		if d.sessionAnswers(ctx) {
			return lookSame, nil
		}
		x, err := Expose(ctx, d.address.hostPort())
		if err != nil || x == (Exposure{}) {
			return lookAway, nil
		}
	}
	return lookForgotten, nil
}

// sessionAnswers asks in the present session, and opens no other.
func (d *ipmiDriver) sessionAnswers(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lib == nil {
		return false
	}
	d.lib.WithRetry(ipmiRetries).WithTimeout(d.timeout)
	_, err := d.lib.GetDeviceID(ctx)
	var answered *types.ResponseError
	return err == nil || errors.As(err, &answered)
}

// drop ends the session: after a restart it is none, else it has lived too long.
func (d *ipmiDriver) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropLocked(ipmiFarewell)
}
