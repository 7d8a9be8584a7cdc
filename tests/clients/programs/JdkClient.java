import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Posts a body again and again with JDK's client as it is by default: `java JdkClient.java URL KEY BODY TIMES`. */
class JdkClient {
    public static void main(String[] arguments) throws Exception {
        // By default, this client offers an upgrade to HTTP/2 in each request over http.
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Authorization", "Bearer " + arguments[1])
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(arguments[2]))
                .build();
        for (int sent = 0; sent < Integer.parseInt(arguments[3]); sent++) {
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
        }
    }
}
