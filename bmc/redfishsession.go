package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// openedSession reads what the answer to a login tells of the session.
func openedSession(response *http.Response, body []byte) Session {
	var about struct {
		ID      string `json:"@odata.id"`
		Created string `json:"CreatedTime"`
	}
	_ = json.Unmarshal(body, &about) // the body is optional (DSP0266, 13.3.4.2); the header is not
	uri := about.ID
	if at, err := url.Parse(response.Header.Get("Location")); err == nil && at.Path != "" {
		uri = at.Path
	}
	if !strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "//") {
		return Session{}
	}
	return Session{URI: strings.TrimSuffix(uri, "/"), Created: about.Created}
}

// sweep removes the sessions that an earlier process of ours left. It looks
// first: after a restart a BMC may have given the same URI to somebody else.
func (d *redfishDriver) sweep(ctx context.Context) (removed int) {
	d.transport.mu.Lock()
	mine := d.transport.session.URI
	d.transport.mu.Unlock()
	for _, left := range d.target.board.stale() {
		if left.URI == mine {
			continue
		}
		var now struct {
			User    string `json:"UserName"`
			Created string `json:"CreatedTime"`
		}
		_, err := d.get(ctx, left.URI, &now)
		switch {
		case err != nil && !gone(err):
			continue // another time
		case err != nil, now.User != d.target.User, left.Created != "" && now.Created != "" && now.Created != left.Created:
			d.target.board.ended(ctx, left.URI, true)
			continue
		}
		response, err := d.do(ctx, http.MethodDelete, left.URI, "", nil)
		if err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
		}
		if err == nil || gone(err) {
			removed++
			d.target.board.ended(ctx, left.URI, true)
		}
		d.target.Log.Debug("remove a session that was left", "session", left.URI, "err", err)
	}
	return removed
}

// gone reports whether an answer says that there is no such resource.
func gone(err error) bool {
	var answer *AnswerError
	return errors.As(err, &answer) && (answer.Status == http.StatusNotFound || answer.Status == http.StatusGone)
}

// logout ends the session; where the BMC does not agree, it stays on record.
func (d *redfishDriver) logout(ctx context.Context) error {
	d.transport.begin(ctx)
	err := d.transport.failed(d.Conn.Close(ctx)) // bmclib drops the outcome
	d.transport.mu.Lock()
	failure, uri := d.transport.failure, d.transport.session.URI
	d.transport.session = Session{}
	d.transport.mu.Unlock()
	over := failure == nil || gone(failure) || errors.Is(failure, ErrAuth) // a session that is over cannot end itself
	d.target.board.ended(ctx, uri, over)
	return err
}
