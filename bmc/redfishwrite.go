package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// The ways to send an ETag back, in the order in which they are tried. None is
// first, because some BMCs refuse the one that they gave out themselves; the
// strong form is for those that give out a weak one and compare strongly.
const (
	matchNone   = ""
	matchGiven  = "given"
	matchStrong = "strong"
)

// matches are the If-Match headers to try for an ETag; the one that was learned
// comes first. Empty ETags are none.
func matches(etag, learned string) (ways, values []string) {
	strong := strings.TrimPrefix(etag, "W/")
	if strings.Trim(strong, `" `) == "" {
		return []string{matchNone}, []string{""}
	}
	add := func(way, value string) {
		for _, w := range ways {
			if w == way {
				return
			}
		}
		for _, v := range values {
			if v == value {
				return
			}
		}
		ways, values = append(ways, way), append(values, value)
	}
	of := map[string]string{matchNone: "", matchGiven: etag, matchStrong: strong}
	if value, ok := of[learned]; ok {
		add(learned, value)
	}
	for _, way := range []string{matchNone, matchGiven, matchStrong} {
		add(way, of[way])
	}
	return ways, values
}

// patch changes a resource. Another form of the ETag is tried only after 412 or
// 428, by which nothing was changed.
func (d *redfishDriver) patch(ctx context.Context, uri, etag string, v any) error {
	learned := d.facts.get().IfMatch
	ways, values := matches(etag, learned)
	var err error
	for i, value := range values {
		err = d.write(ctx, http.MethodPatch, uri, value, v)
		if status := d.transport.lastStatus(); err != nil && (status == http.StatusPreconditionFailed || status == http.StatusPreconditionRequired) {
			continue
		}
		if err == nil && ways[i] != learned {
			d.facts.learn(func(f *Facts) { f.IfMatch = ways[i] })
		}
		return err
	}
	return err
}

// write is one request that changes something, to its end: a task is awaited.
func (d *redfishDriver) write(ctx context.Context, method, uri, match string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	response, err := d.do(ctx, method, uri, match, body)
	if err != nil {
		return withoutURIs(err)
	}
	said, _ := io.ReadAll(response.Body) // in memory already
	_ = response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return nil
	}
	return withoutURIs(d.settle(ctx, response.Header, said))
}

var foreignURI = regexp.MustCompile(`(?i)https?:[^\s'"<>]*`)

// withoutURIs takes out of a refusal what it repeats of the request: the URI of a
// boot file or an image may hold a token, and errors are shown and kept.
func withoutURIs(err error) error {
	var answer *AnswerError
	if errors.As(err, &answer) {
		answer.Message = foreignURI.ReplaceAllStringFunc(answer.Message, func(uri string) string {
			if strings.Contains(uri, "/redfish/v1/") {
				return uri
			}
			return "(URI)"
		})
	}
	return err
}

const (
	// taskPoll is the pause between two looks at a task.
	taskPoll = time.Second
	// taskHidden is how long a task may be missing after it was announced: Dell's
	// job queue shows a job up to half a minute late.
	taskHidden = 30 * time.Second
)

// redfishTask is the part of a Task, or of a monitor's answer, that tells its end.
type redfishTask struct {
	ID       string `json:"@odata.id"`
	State    string `json:"TaskState"`
	Messages []struct {
		ID   string `json:"MessageId"`
		Text string `json:"Message"`
	} `json:"Messages"`
}

// over tells whether the task has ended, and how. A monitor's answer that is no
// task is that of the request itself.
func (t redfishTask) over() (bool, error) {
	switch t.State {
	case "", "Completed":
		return true, nil
	case "Exception", "Killed", "Cancelled":
	default:
		return false, nil
	}
	e := &AnswerError{Reason: ErrRejected, Code: "TaskState " + t.State, what: "task " + t.ID}
	for _, m := range t.Messages {
		if m.Text != "" || m.ID != "" {
			e.Code, e.Message = oneLine(fmt.Errorf("%s", m.ID)), oneLine(fmt.Errorf("%s", m.Text))
			if r, known := messageReasons[plainMessageID(m.ID)]; known {
				e.Reason = r
			}
		}
	}
	return true, e
}

// settle follows a task until it ends or the call does (DSP0266, 12.2). Where it
// cannot be followed, or our session ends first, what is read back has to tell.
func (d *redfishDriver) settle(ctx context.Context, header http.Header, body []byte) error {
	var begun redfishTask
	_ = json.Unmarshal(body, &begun) // it may have none
	monitor := d.local(header.Get("Location"))
	if monitor == "" {
		monitor = d.local(begun.ID)
	}
	if monitor == "" {
		return nil
	}
	hidden := time.Now().Add(d.target.wait(taskHidden))
	seen := false
	for {
		response, err := d.do(ctx, http.MethodGet, monitor, "", nil)
		switch {
		case err == nil:
			var task redfishTask
			decodeErr := json.NewDecoder(response.Body).Decode(&task)
			_ = response.Body.Close()
			if over, err := task.over(); decodeErr == nil && over && response.StatusCode != http.StatusAccepted {
				return err
			}
			if decodeErr != nil && response.StatusCode != http.StatusAccepted {
				return nil
			}
			seen = true
		case gone(err) && seen:
			return nil // forgotten as soon as it ended
		case gone(err) && time.Now().Before(hidden), errors.Is(err, ErrBusy):
		case d.transport.sessionOver():
			return nil // in a new one the change would be asked for once more
		default:
			return err // the refusal of the request itself, or no answer
		}
		timer := time.NewTimer(d.target.wait(taskPoll))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ended(ctx, "await task "+monitor)
		}
	}
}

// local is the path of a link on this BMC; "" for one that leads elsewhere.
func (d *redfishDriver) local(link string) string {
	u, err := url.Parse(link)
	if err != nil || link == "" || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") {
		return ""
	}
	if u.Host != "" && u.Host != d.address.hostPort() && u.Host != d.address.bracketed() {
		return ""
	}
	return u.RequestURI()
}
