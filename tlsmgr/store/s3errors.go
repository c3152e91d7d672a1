package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// s3Hints says what to do about an error code of S3. %s is the bucket.
var s3Hints = map[string]struct{ message, hint string }{
	"NoSuchBucket":          {"bucket %s does not exist", "create it, or check the name and the region in the storage URL"},
	"AccessDenied":          {"access to bucket %s is denied", "grant s3:GetObject, s3:PutObject, s3:DeleteObject on its objects and s3:ListBucket on it"},
	"AllAccessDisabled":     {"access to bucket %s is disabled", "ask its owner"},
	"ExpiredToken":          {"the credentials for bucket %s have expired", "log in again, or use a role so that they renew themselves"},
	"InvalidToken":          {"the session token for bucket %s is invalid", "set AWS_SESSION_TOKEN to the one that belongs to the access key"},
	"InvalidAccessKeyId":    {"the access key for bucket %s is unknown", "check AWS_ACCESS_KEY_ID, the profile and the endpoint"},
	"SignatureDoesNotMatch": {"the secret key for bucket %s is wrong", "check AWS_SECRET_ACCESS_KEY"},
	"RequestTimeTooSkewed":  {"this machine's clock is too far from that of bucket %s", "let NTP set it"},
	"SlowDown":              {"bucket %s asks to slow down", "edge tries again by itself"},
	"ServiceUnavailable":    {"bucket %s is overloaded", "edge tries again by itself"},
	"NotImplemented":        {"the server of bucket %s lacks a feature", "edge needs conditional writes and ListObjectsV2"},
}

// s3Aliases maps the spellings of other servers and services.
var s3Aliases = map[string]string{
	"ExpiredTokenException": "ExpiredToken", "TokenRefreshRequired": "ExpiredToken", "RequestExpired": "ExpiredToken",
	"UnrecognizedClientException": "InvalidAccessKeyId", "InvalidClientTokenId": "InvalidAccessKeyId",
	"AccessDeniedException": "AccessDenied", "Forbidden": "AccessDenied", "Unauthorized": "InvalidAccessKeyId",
	"RequestThrottled": "SlowDown", "SlowDownRead": "SlowDown", "SlowDownWrite": "SlowDown",
}

// explain turns an error of the SDK into one line for the operator. The SDK's
// own text, which may quote requests, stays behind Unwrap.
func (d *s3Driver) explain(err error) error {
	if err == nil || errors.Is(err, ErrTooLarge) {
		return err
	}
	status, region := 0, ""
	if re, ok := errors.AsType[*awshttp.ResponseError](err); ok && re.Response != nil {
		status, region = re.HTTPStatusCode(), re.Response.Header.Get("X-Amz-Bucket-Region")
	}
	api, _ := errors.AsType[smithy.APIError](err)
	code, text := "", ""
	if api != nil {
		code, text = api.ErrorCode(), api.ErrorMessage()
	}
	if alias, ok := s3Aliases[code]; ok {
		code = alias
	}
	if _, noCredentials := errors.AsType[*credentialsError](err); noCredentials {
		return d.explainCredentials(code, err)
	}
	known, ok := s3Hints[code]
	switch {
	case ok:
		return &responseError{fault{fmt.Sprintf(known.message, d.bucket), known.hint, err}, status}
	case code == "NoSuchKey" || status == http.StatusNotFound:
		return &responseError{fault{fs.ErrNotExist.Error(), "", errors.Join(fs.ErrNotExist, err)}, status}
	case wrongRegion(code, status):
		return &responseError{d.explainRegion(region, text, err), status}
	case status == http.StatusForbidden:
		denied := s3Hints["AccessDenied"]
		return &responseError{fault{fmt.Sprintf(denied.message, d.bucket), denied.hint, err}, status}
	case status != 0:
		return &responseError{fault{fmt.Sprintf("bucket %s answered %d %s: %s", d.bucket, status, oneLine(code), oneLine(text)), "", err}, status}
	}
	return d.peer().explain(err)
}

// isConflict reports whether a conditional write lost. 404 is If-Match on an
// object that is gone, 409 two writes at the same moment.
func isConflict(err error) bool {
	f, ok := errors.AsType[*responseError](err)
	return ok && (f.status == http.StatusPreconditionFailed || f.status == http.StatusConflict || errors.Is(f, fs.ErrNotExist))
}

func (d *s3Driver) explainCredentials(code string, err error) error {
	if known, ok := s3Hints[code]; ok {
		return &fault{fmt.Sprintf(known.message, d.bucket), known.hint, err}
	}
	return &fault{
		fmt.Sprintf("no credentials for bucket %s", d.bucket),
		"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run with a role", err,
	}
}

func wrongRegion(code string, status int) bool {
	switch code {
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return true
	}
	return status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect
}

func (d *s3Driver) explainRegion(region, text string, err error) fault {
	if region == "" { // "… the region 'us-east-1' is wrong; expecting 'eu-west-1'"
		if _, after, ok := strings.Cut(text, "expecting '"); ok {
			region, _, _ = strings.Cut(after, "'")
		}
	}
	if region = oneLine(region); region == "" {
		return fault{fmt.Sprintf("bucket %s is in another region", d.bucket), "check region and endpoint in the storage URL", err}
	}
	return fault{fmt.Sprintf("bucket %s is in region %s", d.bucket, region), "set region=" + region + " in the storage URL", err}
}

func (d *s3Driver) peer() peer {
	return peer{cmp.Or(d.endpoint, "S3"), "endpoint and region", "set AWS_CA_BUNDLE to the file of its CA"}
}
