package bmc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	bmclibbmc "github.com/bmc-toolbox/bmclib/v2/bmc"
	bmcliberrors "github.com/bmc-toolbox/bmclib/v2/errors"
	"github.com/bmc-toolbox/bmclib/v2/providers/dell"
	"github.com/go-logr/logr"
)

// Screen is a Client that takes pictures of the machine's screen. Those of Dial and
// Fake are; BMCs without one are ErrUnsupported.
type Screen interface {
	// Screenshot is a PNG file of what the screen shows now.
	Screenshot(ctx context.Context) ([]byte, error)
}

var (
	_ Screen = (*session)(nil)
	_ Screen = (*Fake)(nil)

	_ bmclibbmc.ScreenshotGetter = (*witness)(nil)
	_ bmclibbmc.ScreenshotGetter = (*redfishDriver)(nil)
)

// Screenshot costs five requests.
func (s *session) Screenshot(ctx context.Context) (image []byte, err error) {
	err = s.call(ctx, "take a screenshot", func(ctx context.Context) (err error) {
		image, _, err = s.lib.Screenshot(ctx)
		return s.cause(err)
	})
	return image, err
}

func (w *witness) Screenshot(ctx context.Context) (image []byte, kind string, err error) {
	if d, ok := w.driver.(bmclibbmc.ScreenshotGetter); ok {
		image, kind, w.err = d.Screenshot(ctx)
	} else {
		w.err = fmt.Errorf("%w: IPMI does not know of a screen", ErrUnsupported)
	}
	return image, kind, w.err
}

// Screenshot is a vendor's own affair: the vendor, as the system told it before or
// tells it now, chooses the one provider that is asked.
func (d *redfishDriver) Screenshot(ctx context.Context) (image []byte, kind string, err error) {
	err = d.again(ctx, func() (err error) {
		image, kind, err = d.screenshot(ctx)
		return err
	})
	return image, kind, err
}

func (d *redfishDriver) screenshot(ctx context.Context) (image []byte, kind string, err error) {
	about := d.facts.get()
	if about.Vendor == "" {
		var system redfishOwner
		if _, err := d.get(ctx, d.transport.system, &system); err != nil {
			return nil, "", err
		}
		d.facts.of(string(system.Manufacturer), string(system.Model), "")
		about = d.facts.get()
	}
	if quirksOf(about.Vendor, about.Model, about.Firmware).provider != dell.ProviderName {
		return nil, "", fmt.Errorf("%w: of Dell's iDRAC alone recast gets pictures of the screen, and this is of %q", ErrUnsupported, about.Vendor)
	}
	conn := d.dell()
	// Open looks whether it is a Dell; there is no session of it to close.
	if err = conn.Open(ctx); err == nil {
		image, kind, err = conn.Screenshot(ctx)
	}
	var answer *AnswerError
	switch {
	case err == nil && !bytes.HasPrefix(image, []byte("\x89PNG\r\n\x1a\n")):
		return nil, "", badImage
	case err == nil:
		return image, kind, nil
	case errors.As(d.transport.failed(err), &answer) && answer.Status == http.StatusForbidden && answer.Reason == ErrAuth:
		// The session is good: whatever this BMC's word for it, the user may not see the
		// console, and power must not wait for another password because of that.
		answer.Reason = ErrRejected
	case errors.Is(err, bmcliberrors.ErrIncompatibleProvider):
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return nil, "", err
}

// dell is bmclib's provider for iDRACs, in our session.
func (d *redfishDriver) dell() *dell.Conn {
	return dell.New(d.address.bracketed(), "", "", logr.FromSlogHandler(d.target.Log.Handler()),
		dell.WithHttpClient(&http.Client{Transport: lentSession{d}, CheckRedirect: sameHost}),
		dell.WithPort(strconv.Itoa(d.address.port)),
		dell.WithUseBasicAuth(true)) // for want of a user it sends none, nor makes a session
}

// lentSession carries the requests of a vendor's provider in our session. The provider
// itself knows neither user nor password: it cannot log in once more, nor leave a
// session open, nor write either anywhere.
type lentSession struct{ driver *redfishDriver }

func (l lentSession) RoundTrip(in *http.Request) (*http.Response, error) {
	out := in.Clone(in.Context())
	l.driver.authorise(out)
	return l.driver.transport.RoundTrip(out)
}
