package bmc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/redfish"
	"github.com/go-logr/logr"
)

// redfishDriver is bmclib's Redfish provider over our transport. Sessions are
// bmclib's. The boot override is ours, because bmclib writes back the whole Boot
// object and reports success when the mode was refused; so is power, because
// bmclib reads all systems to find one, by a name that is not unique on blades, and
// reports success of a reset that did not happen.
type redfishDriver struct {
	*redfish.Conn
	address      address
	target       Target
	transport    *redfishTransport
	http         *http.Client
	opened       bool
	facts        memory
	noBoot       string         // a settings object without a Boot
	bios         bool           // the mode that was asked for last, where the BMC tells none
	log          string         // the entries of the event log, once found
	eventService string         // its path; "" none
	seen         *redfishSystem // by the last look at the power, at seenAt; once
	seenAt       time.Time
}

var _ driver = (*redfishDriver)(nil)

func newRedfish(a address, t Target) (*redfishDriver, error) {
	d := &redfishDriver{address: a, target: t, transport: newRedfishTransport(a, t), facts: memory{facts: t.Facts}}
	d.http = &http.Client{Transport: d.transport, CheckRedirect: sameHost}
	d.connect(false)
	return d, nil
}

func (d *redfishDriver) connect(basic bool) {
	d.transport.mu.Lock()
	d.transport.basic, d.transport.token, d.transport.session, d.transport.change = basic, "", Session{}, ""
	d.transport.mu.Unlock()
	d.Conn = redfish.New(d.address.bracketed(), d.target.User, d.target.Password.Reveal(),
		logr.FromSlogHandler(d.target.Log.Handler()),
		redfish.WithHttpClient(d.http),
		redfish.WithPort(strconv.Itoa(d.address.port)),
		redfish.WithUseBasicAuth(basic))
}

// noSessionLink is what gofish says, and sends nothing, where the service root does
// not tell where to log in.
const noSessionLink = "no target provided"

// Open logs in once and finds the system. Basic authentication does where there
// are no sessions (404, 405 or 501 to the login, or no link to them) or none is free:
// a server that was killed leaves its own behind, and BMCs forget them after minutes.
func (d *redfishDriver) Open(ctx context.Context) error {
	d.transport.begin(ctx)
	err := d.login(ctx)
	reason := d.transport.failed(err)
	full := errors.Is(reason, ErrBusy)
	if d.transport.lastStatus() != 0 && (errors.Is(reason, ErrUnsupported) || full && !d.target.board.basicOff(false)) ||
		err != nil && strings.Contains(err.Error(), noSessionLink) {
		d.connect(true)
		d.transport.begin(ctx)
		err = d.login(ctx)
	}
	if err != nil {
		return d.transport.failed(err)
	}
	d.opened = true
	if d.sweep(ctx) > 0 && full {
		// The place that is free now is ours: basic authentication costs the BMC a
		// password hash for every request.
		d.connect(false)
		d.transport.begin(ctx)
		if err := d.login(ctx); err != nil {
			return d.transport.failed(err)
		}
	}
	d.transport.begin(ctx)
	err = d.find(ctx)
	switch {
	case errors.Is(err, ErrChangePassword):
		return nil // it is in, to do this one thing
	case full && d.transport.lastStatus() == http.StatusUnauthorized && d.transport.basicRefused():
		// It has no such login: that says nothing of the password, and all sessions are
		// taken still. Where it only does not tell of it (Unadvertised), this is asked once.
		d.target.board.basicOff(true)
		return reason
	}
	return err
}

// rest closes the connection; the session is the BMC's and stays. Some BMCs have
// no more than a few connections for all of their clients.
func (d *redfishDriver) rest() {
	d.transport.rest()
	d.seen = nil
}

func (d *redfishDriver) login(ctx context.Context) error {
	err := d.Conn.Open(ctx)
	// bmclib leaves the rest of this call's time as the limit of all others; the
	// transport gives every request its own call's context instead.
	d.http.Timeout = 0
	if err == nil {
		d.transport.mu.Lock()
		session := d.transport.session
		d.transport.mu.Unlock()
		d.target.board.opened(ctx, session)
	}
	return err
}

// Close logs out and leaves no idle connection.
func (d *redfishDriver) Close(ctx context.Context) error {
	defer d.transport.base.CloseIdleConnections()
	if !d.opened {
		return nil
	}
	d.opened = false
	return d.logout(ctx)
}

// again runs a call and, where the BMC has forgotten the session, logs in once
// more and runs it again: a 401 was not executed.
func (d *redfishDriver) again(ctx context.Context, do func() error) error {
	if d.transport.mustChange() != "" {
		return fmt.Errorf("%w: of %q", ErrChangePassword, d.target.User)
	}
	return d.inSession(ctx, do)
}

// inSession is again for what is done while the password has to be changed.
func (d *redfishDriver) inSession(ctx context.Context, do func() error) error {
	d.transport.begin(ctx)
	err := d.transport.failed(do())
	if err == nil || !d.transport.sessionOver() {
		return err
	}
	d.transport.mu.Lock()
	forgotten := d.transport.session.URI
	d.transport.mu.Unlock()
	d.target.board.ended(ctx, forgotten, true)
	d.connect(false)
	d.transport.begin(ctx)
	if err := d.login(ctx); err != nil {
		return d.transport.failed(err)
	}
	d.transport.begin(ctx)
	return d.transport.failed(do())
}

type redfishLink struct {
	ID string `json:"@odata.id"`
}

// find resolves the one system of the target.
func (d *redfishDriver) find(ctx context.Context) error {
	var service struct {
		Systems redfishLink `json:"Systems"`
		Events  redfishLink `json:"EventService"`
	}
	// As the login read it; some tell more of it to who is in.
	if root := d.transport.takeRoot(); root == nil || json.Unmarshal(root, &service) != nil || service.Systems.ID == "" {
		if _, err := d.get(ctx, rootPath+"/", &service); err != nil {
			return err
		}
	}
	d.eventService = d.local(service.Events.ID)
	if service.Systems.ID == "" {
		return fmt.Errorf("%w: its service root lists no systems", ErrUnsupported)
	}
	var collection struct {
		Members []redfishLink `json:"Members"`
	}
	if _, err := d.get(ctx, service.Systems.ID, &collection); err != nil {
		return err
	}
	system, err := chooseSystem(d.address.system, collection.Members)
	if err != nil {
		return err
	}
	d.transport.mu.Lock()
	defer d.transport.mu.Unlock()
	d.transport.system = strings.TrimSuffix(system, "/")
	return nil
}

// chooseSystem never guesses: acting on the wrong blade erases its disk.
func chooseSystem(want string, members []redfishLink) (string, error) {
	var ids []string
	for _, m := range members {
		id := path.Base(strings.TrimSuffix(m.ID, "/"))
		if want != "" && (want == id || strings.TrimSuffix(want, "/") == strings.TrimSuffix(m.ID, "/")) {
			return m.ID, nil
		}
		ids = append(ids, id)
	}
	switch {
	case want != "":
		return "", fmt.Errorf("%w: it has no system %q, only %s", ErrUnsupported, path.Base(want), strings.Join(ids, ", "))
	case len(ids) == 0:
		return "", fmt.Errorf("%w: it lists no system", ErrUnsupported)
	case len(ids) > 1:
		return "", fmt.Errorf("%w: it has several systems (%s); name one in the url: redfish://host/redfish/v1/Systems/ID", ErrUnsupported, strings.Join(ids, ", "))
	}
	return members[0].ID, nil
}

// get reads one resource into v.
func (d *redfishDriver) get(ctx context.Context, uri string, v any) (http.Header, error) {
	response, err := d.do(ctx, http.MethodGet, uri, "", nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if err := json.Unmarshal(response.Body.(*readBody).all, v); err != nil {
		return nil, fmt.Errorf("%w: read %s: %s", badShape, uri, oneLine(err))
	}
	return response.Header, nil
}

// do is one request of ours, in the session that bmclib opened.
func (d *redfishDriver) do(ctx context.Context, method, uri, etag string, body []byte) (*http.Response, error) {
	if !strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "//") {
		return nil, fmt.Errorf("%w: %q", badLink, uri)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+d.address.hostPort()+uri, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %q", badLink, uri)
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("OData-Version", "4.0")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		request.Header.Set("If-Match", etag)
	}
	d.transport.mu.Lock()
	d.transport.failure, d.transport.status = nil, 0
	d.transport.mu.Unlock()
	d.authorise(request)
	response, err := d.http.Do(request)
	if err != nil {
		return nil, d.transport.failed(err)
	}
	if response.StatusCode >= 400 {
		_ = response.Body.Close()
		return nil, d.transport.failed(fmt.Errorf("%s %s: status %d", method, uri, response.StatusCode))
	}
	return response, nil
}

// authorise puts our session, or the password where there is none, into a request.
func (d *redfishDriver) authorise(request *http.Request) {
	d.transport.mu.Lock()
	token, basic := d.transport.token, d.transport.basic
	d.transport.mu.Unlock()
	if basic {
		request.SetBasicAuth(d.target.User, d.target.Password.Reveal())
	} else if token != "" {
		request.Header.Set("X-Auth-Token", token)
	}
}
